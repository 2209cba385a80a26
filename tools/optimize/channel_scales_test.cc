#include "tools/optimize/channel_scales.h"

#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"
#include "tools/optimize/layer_runner.h"
#include "tools/optimize/testing_matrices.h"
#include "tools/optimize/testing_states.h"

namespace terrace {
namespace {

// Heads that share key and value heads.
ModelConfig Config() {
  ModelConfig config;
  config.family = "llama";
  config.vocab_size = 100;
  config.context_length = 64;
  config.hidden_size = 64;
  config.layers = 1;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.ffn_size = 96;
  return config;
}

FloatLayer RandomLayer(const ModelConfig& config, unsigned seed) {
  FloatLayer layer;
  for (const TensorKind linear : kLinears) {
    const Shape shape = TensorShape(config, linear, /*layer=*/0);
    layer.matrix(linear) = RandomFloats(shape[0], shape[1], ++seed);
    for (float& value : layer.matrix(linear).values) value /= std::sqrt(static_cast<float>(shape[1]));
  }
  layer.attention_norm = RandomFloats(1, config.hidden_size, ++seed).values;
  layer.ffn_norm = RandomFloats(1, config.hidden_size, ++seed).values;
  return layer;
}

std::vector<float> Outputs(const ModelConfig& config, const FloatLayer& layer) {
  const std::vector<std::vector<TokenId>> sequences = {std::vector<TokenId>(20), std::vector<TokenId>(7)};
  ThreadPool pool(1);
  auto runner = LayerRunner::Create(config, sequences, ReferenceOps(), pool);
  CHECK(runner.ok(), Message(runner.status()));
  HiddenStates hidden =
      StatesOf(CorrelatedInputs(27, config.hidden_size, /*seed=*/50).values, config.hidden_size);
  const Status status = (*runner)->Run(layer, hidden, hidden, nullptr);
  CHECK(status.ok(), Message(status));
  return ValuesOf(hidden);
}

size_t ChannelsOf(const ModelConfig& config, LinearInput input) {
  return input == LinearInput::kAttentionOutput ? size_t{config.kv_heads} * config.head_dim
         : input == LinearInput::kDown          ? config.ffn_size
                                                : config.hidden_size;
}

TEST(FoldScales, TheLayerComputesWhatItDid) {
  const ModelConfig config = Config();
  const FloatLayer layer = RandomLayer(config, /*seed=*/1);
  const auto want = Outputs(config, layer);
  double size = 0;
  for (const float value : want) size = std::max(size, std::abs(double{value}));
  for (const LinearInput input : kLinearInputs) {
    SCOPED_TRACE(testing::Message() << "input " << static_cast<int>(input));
    std::vector<float> scales = RandomFloats(1, ChannelsOf(config, input), /*seed=*/7).values;
    for (float& scale : scales) scale = std::exp(scale);
    FloatLayer folded = layer;
    FoldScales(config, {input}, scales, folded);
    for (const TensorKind linear : LinearsOf(input))
      EXPECT_NE(folded.matrix(linear).values, layer.matrix(linear).values);
    const auto got = Outputs(config, folded);
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5 * size) << i;
  }
}

// Which experts a token takes, too.
TEST(FoldScales, ALayerOfExpertsComputesWhatItDid) {
  ModelConfig config = Config();
  config.experts = 3;
  config.experts_per_token = 2;
  FloatLayer layer = RandomLayer(config, /*seed=*/11);
  layer.router = RandomFloats(config.experts, config.hidden_size, /*seed=*/12);
  for (unsigned expert = 0; expert < config.experts; ++expert)
    layer.experts.push_back(RandomLayer(config, /*seed=*/20 * (expert + 1)));
  const auto want = Outputs(config, layer);
  double size = 0;
  for (const float value : want) size = std::max(size, std::abs(double{value}));
  FloatLayer folded = layer;
  for (uint32_t expert = 0; expert < config.experts; ++expert) {
    std::vector<float> scales = RandomFloats(1, config.ffn_size, /*seed=*/30 + expert).values;
    for (float& scale : scales) scale = std::exp(scale);
    FoldScales(config, {LinearInput::kDown, expert}, scales, folded);
    EXPECT_NE(folded.experts[expert].down.values, layer.experts[expert].down.values);
    EXPECT_EQ(folded.experts[expert].gate.values, layer.experts[expert].gate.values);
  }
  const auto got = Outputs(config, folded);
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5 * size) << i;
}

TEST(AwqScales, LoseNoMoreThanNoneAndFarLessThanRoundingWhereSomeInputsAreLarge) {
  const ModelConfig config = Config();
  const FloatLayer layer = RandomLayer(config, /*seed=*/2);
  ThreadPool one(1), three(3);
  for (const LinearInput input : kLinearInputs) {
    SCOPED_TRACE(testing::Message() << "input " << static_cast<int>(input));
    const size_t columns = layer.matrix(LinearsOf(input)[0]).columns;
    FloatMatrix x = RandomFloats(200, columns, /*seed=*/3);  // nothing in common, so that only sizes matter
    for (size_t token = 0; token < x.rows; ++token) {
      for (size_t i = 0; i < columns; i += 8) x.Row(token)[i] *= 30;
    }
    const Hessian hessian = HessianOf(x);
    const RowFormat format = RowFormat::Create(DType::kInt4G32, 32, columns).value();
    const auto scales = AwqScales(config, layer, {input}, hessian, format, three);
    ASSERT_EQ(scales.size(), ChannelsOf(config, input));
    EXPECT_EQ(AwqScales(config, layer, {input}, hessian, format, one), scales);
    EXPECT_GT(scales[0], scales[1]);  // the large ones are rounded finer

    // The folded linears on inputs that were divided. Of both a linear's outputs are the same.
    FloatLayer folded = layer;
    FoldScales(config, {input}, scales, folded);
    for (size_t i = 0; i < columns; ++i) {
      const TensorKind first = LinearsOf(input)[0];
      const float divisor = folded.matrix(first).Row(0)[i] / layer.matrix(first).Row(0)[i];
      for (size_t token = 0; token < x.rows; ++token) x.Row(token)[i] /= divisor;
    }
    const Hessian divided = HessianOf(x);
    const auto squared = [](double error) { return error * error; };
    double with = 0, without = 0, rounding = 0;  // all rows of these linears are sampled
    for (const TensorKind linear : LinearsOf(input)) {
      const FloatMatrix &plain = layer.matrix(linear), &scaled = folded.matrix(linear);
      with += squared(RelativeOutputError(
          scaled, RoundToNearest(scaled, format, divided.Diagonal(), one).ToFloat(one), divided, one));
      without += squared(RelativeOutputError(
          plain, RoundToNearest(plain, format, hessian.Diagonal(), one).ToFloat(one), hessian, one));
      rounding += squared(
          RelativeOutputError(plain, RoundToNearest(plain, format, {}, one).ToFloat(one), hessian, one));
    }
    EXPECT_LE(with, without * (1 + 1e-3));  // but for how divisors are rounded
    EXPECT_LT(with, 0.4 * rounding);
  }
}

TEST(AwqScales, AreOneWhereNothingIsGained) {
  const ModelConfig config = Config();
  FloatLayer layer = RandomLayer(config, /*seed=*/4);
  const FloatMatrix zeros = {10, config.hidden_size, std::vector<float>(10 * config.hidden_size)};
  ThreadPool pool(1);
  const RowFormat format = RowFormat::Create(DType::kInt4G32, 32, config.hidden_size).value();
  EXPECT_EQ(AwqScales(config, layer, {LinearInput::kFfn}, HessianOf(zeros), format, pool),
            std::vector<float>(config.hidden_size, 1.0f));
  EXPECT_EQ(SmoothScales(config, layer, {LinearInput::kFfn}, HessianOf(zeros)),
            std::vector<float>(config.hidden_size, 1.0f));
}

TEST(SmoothScales, MakeInputsAndWeightsEquallyLarge) {
  const ModelConfig config = Config();
  FloatLayer layer = RandomLayer(config, /*seed=*/5);
  const FloatMatrix x = CorrelatedInputs(100, config.hidden_size, /*seed=*/6);
  const Hessian hessian = HessianOf(x);
  const auto scales = SmoothScales(config, layer, {LinearInput::kFfn}, hessian);
  FoldScales(config, {LinearInput::kFfn}, scales, layer);
  double first = 0;
  for (size_t i = 0; i < scales.size(); ++i) {
    float weight = 0;
    for (const TensorKind linear : {TensorKind::kGate, TensorKind::kUp}) {
      const FloatMatrix& matrix = layer.matrix(linear);
      for (size_t row = 0; row < matrix.rows; ++row) weight = std::max(weight, std::abs(matrix.Row(row)[i]));
    }
    const double ratio = weight / (hessian.LargestMagnitude(i) / scales[i]);
    if (i == 0) first = ratio;
    EXPECT_NEAR(ratio, first, 1e-4 * first) << i;
  }
}

}  // namespace
}  // namespace terrace
