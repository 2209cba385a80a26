// Every family against logits that Terrace has no part in: tests/families/make_models.py made the models and
// asked Hugging Face's transformers.
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/formats/model_files.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

constexpr const char* kFamilies[] = {"llama3", "mistral",       "qwen2",   "qwen3",    "gemma2",
                                     "gemma3", "gemma3_linear", "mixtral", "qwen3_moe"};

std::string DataPath(const std::string& family, const std::string& file) {
  return "tests/families/data/" + family + "/" + file;
}

std::string Contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  return std::string(std::istreambuf_iterator<char>(in), {});
}

std::vector<int32_t> Tokens(const std::string& family) {
  return ParseJson(Contents(DataPath(family, "tokens.json"))).value().get<std::vector<int32_t>>();
}

std::vector<float> Floats(const std::string& path) {
  const std::string bytes = Contents(path);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

ModelFiles Open(const std::string& path) {
  auto files = OpenWeights(path);
  CHECK(files.ok(), files.status().ToString());
  return *std::move(files);
}

std::vector<float> LogitsOf(const ModelFiles& files, const OpTable& ops, const std::vector<int32_t>& tokens) {
  TestModel model(files.config, *files.weights, ops, /*threads=*/2, /*blocks=*/64, KvDType::kF32,
                  ComputeType::kF32);
  return SequenceLogits(model, tokens);
}

// transformers computes norms, softmax and RoPE in f32, which moves the logits by 4e-6 at most; Terrace's
// sums of up to 96 products and its exp are of the same size (transformer_test.cc has measured 1.5e-5). A
// feature that is missing moves some logit by 0.05 or more, GELU by erf instead of tanh by 1e-3.
constexpr double kLogitTolerance = 1e-4;

TEST(Families, HaveTheLogitsOfTransformers) {
  for (const std::string family : kFamilies) {
    const ModelFiles files = Open("tests/families/data/" + family);
    const std::vector<float> want = Floats(DataPath(family, "logits.f32"));
    for (const OpTable* ops : {&ReferenceOps(), &CpuOps()}) {
      SCOPED_TRACE(testing::Message() << family << " with " << ops->name);
      EXPECT_LT(LargestDifference(LogitsOf(files, *ops, Tokens(family)), want), kLogitTolerance);
    }
  }
}

TEST(Families, AreTheSameInGguf) {
  for (const std::string family : kFamilies) {
    SCOPED_TRACE(family);
    const ModelFiles files = Open(DataPath(family, "model.gguf"));
    // What llama.cpp runs the file as, where GGUF cannot say all of the model.
    const std::string of_gguf = DataPath(family, "logits_gguf.f32");
    const std::string path = std::ifstream(of_gguf).good() ? of_gguf : DataPath(family, "logits.f32");
    EXPECT_LT(LargestDifference(LogitsOf(files, CpuOps(), Tokens(family)), Floats(path)), kLogitTolerance);
  }
}

// As transformers 5 writes it.
TEST(Families, AreTheSameByEitherConfig) {
  for (const std::string family : kFamilies) {
    SCOPED_TRACE(family);
    const auto config = ParseConfigJson(Contents(DataPath(family, "config.json")), "config.json");
    const auto newer = ParseConfigJson(Contents(DataPath(family, "config_v5.json")), "config_v5.json");
    ASSERT_TRUE(config.ok() && newer.ok()) << config.status() << newer.status();
    EXPECT_EQ(ConfigJsonText(*newer), ConfigJsonText(*config));
    const auto again = ParseConfigJson(ConfigJsonText(*config), "again");
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(ConfigJsonText(*again), ConfigJsonText(*config));
    EXPECT_EQ(again->windows, config->windows);
    EXPECT_EQ(again->AttentionScale(), config->AttentionScale());
    EXPECT_EQ(RopeDivisors(*again), RopeDivisors(*config));
  }
}

// A token's logits do not depend on what is computed with it: docs/adr/0003-same-bits.md.
TEST(Families, GiveTheSameBitsTokenByToken) {
  for (const std::string family : kFamilies) {
    SCOPED_TRACE(family);
    const ModelFiles files = Open("tests/families/data/" + family);
    const std::vector<int32_t> tokens = Tokens(family);
    TestModel model(files.config, *files.weights, CpuOps(), /*threads=*/1);
    const std::vector<float> together = SequenceLogits(model, tokens);
    model.PoisonKv();
    std::vector<BlockId> blocks(64);
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<BlockId>(blocks.size() - 1 - i);
    const size_t vocab = files.config.vocab_size;
    for (uint32_t i = 0; i < tokens.size(); ++i) {
      const Batch batch{.sequences = {{.tokens = std::span(tokens).subspan(i, 1),
                                       .first_position = i,
                                       .blocks = blocks,
                                       .logits = 1}}};
      const std::span<const float> alone = Forward(model, batch);
      EXPECT_EQ(0, std::memcmp(alone.data(), together.data() + i * vocab, vocab * sizeof(float))) << i;
    }
  }
}

}  // namespace
}  // namespace terrace
