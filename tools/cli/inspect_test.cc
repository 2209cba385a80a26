#include "tools/cli/inspect.h"

#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"

namespace terrace {
namespace {

using testing::HasSubstr;

TEST(Inspect, BothFormatsOfAModelTellTheSameFacts) {
  const StatusOr<ModelFiles> folder = OpenModel("models/terrace-demo-small");
  const StatusOr<ModelFiles> gguf = OpenModel("models/terrace-demo-small.f16.gguf");
  ASSERT_TRUE(folder.ok()) << folder.status();
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  const Json a = InspectionToJson(*folder).value(), b = InspectionToJson(*gguf).value();
  EXPECT_EQ(a["parameters"], 869760);
  EXPECT_EQ(b["parameters"], 869760);
  for (const char* key :
       {"vocab_size", "context_length", "layers", "heads", "kv_heads", "head_dim", "ffn_size"}) {
    EXPECT_EQ(a["architecture"][key], b["architecture"][key]) << key;
  }
  EXPECT_EQ(a["tokenizer"]["merges"], b["tokenizer"]["merges"]);
  EXPECT_EQ(a["tokenizer"]["special_tokens"], b["tokenizer"]["special_tokens"]);
  EXPECT_EQ(a["tokenizer"]["special_tokens"]["<|end|>"], 1);
  EXPECT_TRUE(a["chat_template"].get<bool>());
  // Two times layers x key/value heads x head size, four bytes each.
  EXPECT_EQ(a["memory"]["kv_bytes_per_token"], 2 * 5 * 2 * 32 * 4);
  EXPECT_EQ(a["memory"]["total_bytes_16_sequences"].get<uint64_t>(),
            a["memory"]["weight_bytes"].get<uint64_t>() + 16u * 512 * 2 * 5 * 2 * 32 * 4);
}

TEST(Inspect, GroupsLayersUnlessEveryTensorIsWanted) {
  TestContext grouped, all;
  ASSERT_EQ(RunInspect({.model = "models/terrace-demo-nano"}, grouped.context), Status());
  ASSERT_EQ(RunInspect({.model = "models/terrace-demo-nano", .all_tensors = true}, all.context), Status());
  EXPECT_THAT(grouped.out.str(),
              testing::ContainsRegex("model\\.layers\\.\\*\\.mlp\\.up_proj\\.weight +F16 +256 x 64 +3 "));
  EXPECT_THAT(grouped.out.str(), testing::Not(HasSubstr("layers.2.")));
  EXPECT_THAT(all.out.str(), HasSubstr("model.layers.2.mlp.up_proj.weight"));
}

TEST(Inspect, AMalformedModelIsExitCode65) {
  const std::filesystem::path file = std::filesystem::path(testing::TempDir()) / "bad.gguf";
  std::ofstream(file) << "GGUF and then nothing that fits";
  TestContext test;
  const Status status = RunInspect({.model = file}, test.context);
  EXPECT_EQ(ExitCodeFor(status), kExitData) << status;
  EXPECT_THAT(Message(status), HasSubstr("bad.gguf"));
  EXPECT_EQ(test.out.str(), "");
}

}  // namespace
}  // namespace terrace
