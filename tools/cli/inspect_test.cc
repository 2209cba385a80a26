#include "tools/cli/inspect.h"

#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"
#include "tools/cli/verdict.h"

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

TEST(Inspect, TellsOfExperts) {
  TestContext test;
  ASSERT_EQ(RunInspect({.model = "tests/families/data/mixtral"}, test.context), Status());
  EXPECT_THAT(test.out.str(), HasSubstr("4 experts of which a token takes 2"));
  EXPECT_THAT(test.out.str(), testing::ContainsRegex("experts\\.\\*\\.w1\\.weight +BF16 +40 x 32 +12 "));
  const Json folder = InspectionToJson(OpenModel("tests/families/data/mixtral").value()).value();
  const Json gguf = InspectionToJson(OpenModel("tests/families/data/mixtral/model.gguf").value()).value();
  for (const Json& json : {folder, gguf}) {
    EXPECT_EQ(json["architecture"]["experts"], 4);
    // Of three layers two experts, of three matrices.
    EXPECT_EQ(json["parameters"].get<uint64_t>() - json["parameters_per_token"].get<uint64_t>(),
              3u * 2 * 3 * 40 * 32);
  }
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

TEST(InspectFit, TellsOfEverySplitAndRecommendsOne) {
  for (const char* model : {"models/terrace-demo-small", "models/terrace-demo-small.f16.gguf"}) {
    TestContext table, json;
    const InspectFitOptions fit{.devices = "2xL4", .fit = {.batch = 4, .context = 512}};
    ASSERT_EQ(RunInspect({.model = model, .fit = fit}, table.context), Status());
    for (const char* text :
         {"TP 1 x PP 1", "TP 1 x PP 2", "TP 2 x PP 1", "recommended: ", "4 sequences of 512 tokens"})
      EXPECT_THAT(table.out.str(), HasSubstr(text));
    ASSERT_EQ(RunInspect({.model = model, .json = true, .fit = fit}, json.context), Status());
    const Json out = ParseJson(json.out.str()).value();
    ASSERT_EQ(out["splits"].size(), 3u);
    EXPECT_TRUE(out["has_weights"].get<bool>());
    EXPECT_FALSE(out["recommended"].is_null());
    const Json whole = InspectionToJson(OpenModel(model).value()).value();
    // The embedding is the output matrix, too, and counts as both.
    const uint64_t tied = uint64_t{1024} * 128 * 2;
    EXPECT_EQ(out["splits"][0]["weight_bytes"], whole["memory"]["weight_bytes"].get<uint64_t>() + tied);
    EXPECT_EQ(out["splits"][0]["kv_bytes_per_token"], 2 * 5 * 2 * 32 * 2) << "bf16";
    EXPECT_EQ(out["splits"][0]["decode"]["sum_bytes"], 0);
    EXPECT_GT(out["splits"][2]["decode"]["sum_bytes"], 0);
  }
}

TEST(InspectFit, NeedsNoWeights) {
  const std::string config = "models/terrace-demo-base/config.json";
  TestContext test;
  ASSERT_EQ(
      RunInspect({.model = config, .json = true, .fit = {.devices = "24GB", .weights = "f16"}}, test.context),
      Status());
  const Json alone = ParseJson(test.out.str()).value();
  EXPECT_FALSE(alone["has_weights"].get<bool>());
  EXPECT_TRUE(alone["devices"]["has_assumed_rates"].get<bool>());
  TestContext text;
  ASSERT_EQ(RunInspect({.model = config, .fit = {.devices = "24GB"}}, text.context), Status());
  EXPECT_THAT(text.out.str(), HasSubstr("there are no weights: matrices are taken as BF16"));
}

TEST(InspectFit, WhatDoesNotFitIsAnAnswerWithItsNumbers) {
  TestContext test;
  const Status status =
      RunInspect({.model = "models/terrace-demo-small", .fit = {.devices = "2x1MB"}}, test.context);
  EXPECT_EQ(Reason(status), kAnswerIsNoReason) << status;
  EXPECT_THAT(test.out.str(), HasSubstr("are not less than the 980000 bytes (0.9 MiB) that a device has"));
  EXPECT_THAT(test.out.str(), testing::ContainsRegex("TP 1 x PP 1 [^\n]* - +- +- +- +-\n")) << "no speeds";
}

TEST(InspectFit, NamesWhatIsWrong) {
  const struct {
    InspectFitOptions fit;
    const char* error;
  } cases[] = {{{.devices = "8xTPU"}, "TPU"},
               {{.devices = "2xL4", .weights = "f16"}, "formats of their own"},
               {{.devices = "2xL4", .weights = "q1"}, "\"q1\" is not one of"},
               {{.devices = "2xL4", .fit = {.context = 513}}, "513 tokens is more than the model's 512"}};
  for (const auto& each : cases) {
    TestContext test;
    const Status status = RunInspect({.model = "models/terrace-demo-small", .fit = each.fit}, test.context);
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << status;
    EXPECT_THAT(Message(status), HasSubstr(each.error));
    EXPECT_EQ(test.out.str(), "");
  }
}

}  // namespace
}  // namespace terrace
