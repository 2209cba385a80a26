#include "tests/gpu/large_model.h"

#include <cmath>
#include <filesystem>

#include "gtest/gtest.h"
#include "tools/optimize/quantize.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/open_engine.h"

namespace terrace {
namespace {

constexpr uint32_t kVocab = 70'000;  // some tokens of three bytes

ModelConfig SmallConfig() {
  ModelConfig config;
  config.family = "llama";
  config.name = "made";
  config.vocab_size = kVocab;
  config.context_length = 64;
  config.hidden_size = 128;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 32;
  config.ffn_size = 256;
  return config;
}

// It opens, and answers with numbers.
void ExpectAnswers(const std::string& path) {
  auto opened = OpenEngine({.model = path, .threads = 2, .device = "cpu"});
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->files->text->tokenizer->vocab_size(), kVocab);
  SequenceSpec spec;
  spec.prompt = {1, 2, 3, kVocab - 1};
  spec.max_tokens = 5;
  spec.ignore_eos = true;
  spec.sampling.temperature = 0;
  auto sink = std::make_shared<CollectingSink>();
  ASSERT_EQ(opened->engine->Submit(std::move(spec), sink), Status());
  const CollectingSink::Answer answer = sink->Wait();
  ASSERT_EQ(answer.tokens.size(), 5u) << answer.result.error;
  for (const SampledToken& token : answer.tokens) EXPECT_TRUE(std::isfinite(token.logprob));
}

// What is written is a model as any other, and so are the folders that the benchmark makes of it.
TEST(LargeModel, RunsOnCpus) {
  ThreadPool pool(2);
  for (const DType dtype : {DType::kQ4_0, DType::kBF16}) {
    SCOPED_TRACE(Info(dtype).name);
    const std::string path = testing::TempDir() + "/large.gguf";
    ASSERT_EQ(WriteLargeModel(path, SmallConfig(), dtype, pool), Status());
    ExpectAnswers(path);
  }
  for (const QuantizeTarget& target : kQuantizeTargets) {
    if (target.name != "int4-g128" && target.name != "fp8") continue;
    SCOPED_TRACE(target.name);
    QuantizeRequest request;
    request.model = testing::TempDir() + "/large.gguf";  // of BF16
    request.out = Concat(testing::TempDir(), "/large-", target.name);
    std::filesystem::remove_all(request.out);
    request.target = target;
    const auto made = Quantize(request);
    ASSERT_TRUE(made.ok()) << made.status();
    ExpectAnswers(request.out);
  }
}

}  // namespace
}  // namespace terrace
