#include "tests/gpu/large_model.h"

#include <cmath>

#include "gtest/gtest.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/open_engine.h"

namespace terrace {
namespace {

// What is written is a model as any other: it opens, and answers with numbers.
TEST(LargeModel, RunsOnCpus) {
  ModelConfig config;
  config.family = "llama";
  config.name = "made";
  config.vocab_size = 70'000;  // some tokens of three bytes
  config.context_length = 64;
  config.hidden_size = 128;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 32;
  config.ffn_size = 192;
  ThreadPool pool(2);
  for (const DType dtype : {DType::kBF16, DType::kQ4_0}) {
    SCOPED_TRACE(Info(dtype).name);
    const std::string path = testing::TempDir() + "/large.gguf";
    ASSERT_EQ(WriteLargeModel(path, config, dtype, pool), Status());
    auto opened = OpenEngine({.model = path, .threads = 2, .device = "cpu"});
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->files->text->tokenizer->vocab_size(), config.vocab_size);
    SequenceSpec spec;
    spec.prompt = {1, 2, 3, 69'999};
    spec.max_tokens = 5;
    spec.ignore_eos = true;
    spec.sampling.temperature = 0;
    auto sink = std::make_shared<CollectingSink>();
    ASSERT_EQ(opened->engine->Submit(std::move(spec), sink), Status());
    const CollectingSink::Answer answer = sink->Wait();
    ASSERT_EQ(answer.tokens.size(), 5u) << answer.result.error;
    for (const SampledToken& token : answer.tokens) EXPECT_TRUE(std::isfinite(token.logprob));
  }
}

}  // namespace
}  // namespace terrace
