#include "tools/distill/model_weights.h"

#include <cmath>
#include <filesystem>

#include "gtest/gtest.h"
#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

ModelFiles Opened(const std::string& path) {
  auto files = OpenModel(path);
  CHECK(files.ok(), Message(files.status()));
  return *std::move(files);
}

ModelWeights Loaded(const ModelFiles& files) {
  ThreadPool pool(1);
  auto weights = LoadWeights(files, pool);
  CHECK(weights.ok(), Message(weights.status()));
  return *std::move(weights);
}

// Nano's shape with three layers of unequal feed-forward sizes, as pruning leaves them.
ModelConfig Unequal() {
  ModelConfig config = Opened("models/terrace-demo-nano").config;
  config.layers = 3;
  SetFfnSizes({64, 32, 96}, config);
  return config;
}

Status Validity(const ModelConfig& config) {
  return ValidateModelConfig(config, [](std::string_view key, std::string_view message) {
    return InvalidArgument(key, ": ", message);
  });
}

TEST(ModelWeights, AreTheSameFromBothFormats) {
  const ModelWeights folder = Loaded(Opened("models/terrace-demo-nano")),
                     gguf = Loaded(Opened("models/terrace-demo-nano.f16.gguf"));
  EXPECT_EQ(folder.tensors, gguf.tensors);
  EXPECT_EQ(gguf.config.names, NameScheme::kHuggingFace);
  EXPECT_EQ(gguf.config.rope_pairing, RopePairing::kHalves);
}

TEST(ModelWeights, TakesLayersEvenlyWithTheFirstAndTheLast) {
  const ModelFiles files = Opened("models/terrace-demo-base");  // of five layers
  const ModelWeights all = Loaded(files);
  constexpr size_t kOfLayer = 9;
  ThreadPool pool(1);
  const std::vector<std::vector<size_t>> layers_of = {{0}, {0, 4}, {0, 2, 4}, {0, 1, 3, 4}, {0, 1, 2, 3, 4}};
  for (const std::vector<size_t>& layers : layers_of) {
    const auto some = TakeLayers(files, static_cast<uint32_t>(layers.size()), pool);
    ASSERT_TRUE(some.ok()) << some.status();
    EXPECT_EQ(some->config.layers, layers.size());
    ASSERT_EQ(some->tensors.size(), RequiredTensors(some->config).size());
    EXPECT_EQ(some->tensors.front(), all.tensors.front());
    EXPECT_EQ(some->tensors.back(), all.tensors.back());
    for (size_t i = 0; i < layers.size(); ++i) {
      for (size_t tensor = 0; tensor < kOfLayer; ++tensor)
        EXPECT_EQ(some->tensors[1 + i * kOfLayer + tensor], all.tensors[1 + layers[i] * kOfLayer + tensor]);
    }
  }
  for (const uint32_t layers : {0u, 6u})
    EXPECT_EQ(TakeLayers(files, layers, pool).status().code(), StatusCode::kInvalidArgument);
}

TEST(ModelWeights, LayersThatAreTakenKeepTheirFeedForwardSizes) {
  const ModelWeights all = RandomWeights(Unequal(), /*seed=*/3);
  const std::string path = testing::TempDir() + "model_weights_unequal";
  fs::remove_all(path);
  const TextAssets text = *Opened("models/terrace-demo-nano").text;
  ASSERT_TRUE(WriteWeights(path, all, text, DType::kF32, "", nullptr).ok());
  const ModelFiles files = Opened(path);
  EXPECT_EQ(Loaded(files).tensors, all.tensors);
  ThreadPool pool(1);
  const auto first = TakeLayers(files, 1, pool), ends = TakeLayers(files, 2, pool);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(ends.ok()) << ends.status();
  EXPECT_EQ(first->config.ffn_size, 64u);
  EXPECT_TRUE(first->config.ffn_sizes.empty());
  EXPECT_EQ(ends->config.ffn_size, 96u);
  EXPECT_EQ(ends->config.ffn_sizes, (std::vector<uint32_t>{64, 96}));
  for (const auto* taken : {&*first, &*ends}) {
    EXPECT_EQ(Validity(taken->config), Status());
    const auto tensors = RequiredTensors(taken->config);
    ASSERT_EQ(taken->tensors.size(), tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i)
      EXPECT_EQ(taken->tensors[i].size(), ElementCount(tensors[i].shape).value()) << tensors[i].name;
  }
}

TEST(ModelWeights, WhatIsWrittenLoadsAsItWasRounded) {
  const ModelFiles files = Opened("models/terrace-demo-nano");
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    ModelWeights weights = RandomWeights(DraftConfig(files.config), /*seed=*/3);
    const ModelWeights exact = weights;
    ASSERT_EQ(RoundWeights(dtype, weights), Status());
    EXPECT_EQ(weights.tensors == exact.tensors, dtype == DType::kF32);
    const std::string out = testing::TempDir() + "model_weights_" + std::string(Info(dtype).name);
    fs::remove_all(out);
    const auto digest = WriteWeights(out, weights, *files.text, dtype, "", nullptr);
    ASSERT_TRUE(digest.ok()) << digest.status();
    const ModelFiles written = Opened(out);
    EXPECT_EQ(written.digest, *digest);
    EXPECT_EQ(Loaded(written).tensors, weights.tensors);
  }
}

TEST(ModelWeights, AValueThatTheDtypeCannotHoldIsAnErrorWithItsTensor) {
  ModelWeights weights = RandomWeights(DraftConfig(Opened("models/terrace-demo-nano").config), /*seed=*/3);
  weights.tensors[0][5] = 1e6f;
  const Status status = RoundWeights(DType::kF16, weights);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(Message(status).find("embed_tokens"), std::string::npos) << status;
}

TEST(ModelWeights, RandomOnesFollowTheSeedAndAreOfTheWantedSize) {
  const ModelConfig config = DraftConfig(Opened("models/terrace-demo-base").config);
  const ModelWeights one = RandomWeights(config, 1);
  EXPECT_EQ(one.tensors, RandomWeights(config, 1).tensors);
  EXPECT_NE(one.tensors, RandomWeights(config, 2).tensors);
  const auto tensors = RequiredTensors(one.config);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (IsNorm(tensors[i].kind)) continue;
    double squares = 0;
    for (const float value : one.tensors[i]) squares += double{value} * value;
    const double deviation = std::sqrt(squares / static_cast<double>(one.tensors[i].size()));
    const bool adds = tensors[i].kind == TensorKind::kAttentionOutput || tensors[i].kind == TensorKind::kDown;
    const double wanted =
        1 / std::sqrt(static_cast<double>(tensors[i].shape[1]) * (adds ? 2.0 * config.layers : 1));
    EXPECT_NEAR(deviation / wanted, 1, 0.1) << tensors[i].name;
  }
}

TEST(DraftConfig, IsAValidModelOfTheSameVocabulary) {
  for (const char* teacher : {"nano", "small", "base"}) {
    const ModelConfig of = Opened(Concat("models/terrace-demo-", teacher)).config, draft = DraftConfig(of);
    EXPECT_EQ(Validity(draft), Status()) << teacher;
    EXPECT_EQ(draft.vocab_size, of.vocab_size);
    EXPECT_EQ(draft.context_length, of.context_length);
    EXPECT_LE(draft.layers, of.layers);
    EXPECT_LE(draft.hidden_size, of.hidden_size);
  }
}

TEST(DraftConfig, OfATeacherOfUnequalLayersHasEqualOnes) {
  const ModelConfig draft = DraftConfig(Unequal());
  EXPECT_EQ(Validity(draft), Status());
  EXPECT_EQ(draft.layers, 2u);
  EXPECT_EQ(draft.ffn_size, 24u);
  EXPECT_TRUE(draft.ffn_sizes.empty());
}

}  // namespace
}  // namespace terrace
