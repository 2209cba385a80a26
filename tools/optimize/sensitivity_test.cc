#include "tools/optimize/sensitivity.h"

#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "gtest/gtest.h"
#include "tools/optimize/hessian.h"
#include "tools/optimize/testing_states.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

using LayerFormats = SensitivityMeter::LayerFormats;

// A random model in F32 and two texts.
class SensitivityTest : public testing::Test {
 protected:
  explicit SensitivityTest(const ModelConfig& config = Config())
      : pool_(2), model_(DType::kF32, /*seed=*/1, config) {
    for (const size_t length : {12, 30}) sequences_.push_back(RandomTokens(length, 100, /*seed=*/length));
    runner_ = LayerRunner::Create(model_.config, sequences_, CpuOps(), pool_).value();
    const bool is_tied = model_.config.tied_embeddings;
    const TensorView output = Tensor(is_tied ? TensorKind::kEmbedding : TensorKind::kOutput);
    output_.emplace(LoadVector(model_.config, model_, TensorKind::kFinalNorm).value(),
                    model_.config.norm_epsilon, /*softcap=*/0.0f, MatrixOf(output), CpuOps(), pool_);
  }

  static ModelConfig Config() {
    ModelConfig config = RandomModel::SmallConfig();
    config.hidden_size = 64;
    config.heads = 2;
    config.kv_heads = 1;
    config.head_dim = 32;
    config.ffn_size = 128;
    return config;
  }

  TensorView Tensor(TensorKind kind) const { return model_.Find(TensorName(model_.config, kind)).value(); }

  SensitivityMeter Meter(std::function<bool()> is_cancelled = nullptr) {
    const auto load = [this](uint32_t layer) {
      return LoadLayer(model_.config, model_, layer, model_.config.rope_pairing, pool_);
    };
    return SensitivityMeter({model_.config, load}, *runner_, *output_, pool_, std::move(is_cancelled));
  }

  HiddenStates Embedded() {
    const FloatMatrix table = ToFloats(MatrixOf(Tensor(TensorKind::kEmbedding)), pool_);
    std::vector<float> hidden;
    for (const auto& sequence : sequences_) {
      for (const TokenId token : sequence) {
        const auto row = table.Row(static_cast<size_t>(token));
        hidden.insert(hidden.end(), row.begin(), row.end());
      }
    }
    return StatesOf(hidden, table.columns);
  }

  LayerFormats Formats(DType dtype) const {
    LayerFormats formats;
    for (const TensorKind linear : kLinears)
      formats.push_back(LinearFormat::Create(dtype, 32, TensorShape(model_.config, linear, 0)[1]).value());
    return formats;
  }

  void ExpectLargerFormatsToLoseLess() {
    SensitivityMeter meter = Meter();
    ASSERT_EQ(meter.Begin(Embedded()), Status());
    const LayerFormats formats[] = {Formats(DType::kQ4_0), Formats(DType::kQ8_0), Formats(DType::kF32)};
    for (uint32_t layer = 0; layer < model_.config.layers; ++layer) {
      const auto measured = meter.Measure(formats);
      ASSERT_TRUE(measured.ok()) << measured.status();
      for (const LinearInput input : kLinearInputs) {
        EXPECT_GT(measured->LossOf(input, 0), 0);
        EXPECT_EQ(measured->LossOf(input, 0), measured->divergences[static_cast<size_t>(input)]);
        EXPECT_LT(measured->LossOf(input, 1), 0.05 * measured->LossOf(input, 0));
        EXPECT_EQ(measured->LossOf(input, 2), 0);
      }
    }
  }

  ThreadPool pool_;
  const RandomModel model_;
  std::vector<std::vector<TokenId>> sequences_;
  std::unique_ptr<LayerRunner> runner_;
  std::optional<OutputDivergence> output_;
};

TEST_F(SensitivityTest, LargerFormatsLoseLessAndWhatIsKeptLosesNothing) { ExpectLargerFormatsToLoseLess(); }

// Of 16 experts a token takes one: none of the 42 goes to some of them, but may when others are rounded.
class SensitivityOfExperts : public SensitivityTest {
 protected:
  SensitivityOfExperts() : SensitivityTest(Mixture()) {}
  static ModelConfig Mixture() {
    ModelConfig config = Config();
    config.family = "mixtral";
    config.experts = 16;
    config.experts_per_token = 1;
    return config;
  }
};

TEST_F(SensitivityOfExperts, LargerFormatsLoseLessAndWhatIsKeptLosesNothing) {
  ExpectLargerFormatsToLoseLess();
}

// The errors of an expert count by the share of the tokens that go to it.
TEST_F(SensitivityOfExperts, ExpertsCountByTheirTokens) {
  struct Inputs : LayerObserver {
    Status OnInputs(LayerInput input, std::span<const float> x, size_t tokens) override {
      if (input.kind != LinearInput::kDown) return Status();
      hessians.try_emplace(input.expert, x.size() / tokens).first->second.Add(x, tokens, pool);
      return Status();
    }
    Status OnReady(LayerInput) override { return Status(); }
    ThreadPool pool{1};
    std::map<uint32_t, Hessian> hessians;
  } inputs;
  const FloatLayer layer = LoadLayer(model_.config, model_, 0, model_.config.rope_pairing, pool_).value();
  ASSERT_EQ(runner_->Show(layer, Embedded(), inputs), Status());
  const LayerFormats formats[] = {Formats(DType::kQ4_0)};
  double want = 0;
  for (const auto& [expert, hessian] : inputs.hessians) {
    const FloatMatrix& down = layer.experts[expert].down;
    const FloatMatrix rounded =
        WriteNearest(down, formats[0][PlaceOf(TensorKind::kDown)], /*importance=*/{}, pool_).values;
    const double error = RelativeOutputError(down, rounded, hessian, pool_);
    want += static_cast<double>(hessian.tokens()) / static_cast<double>(runner_->tokens()) * error * error;
  }
  EXPECT_GT(inputs.hessians.size(), 2u);
  EXPECT_LT(inputs.hessians.size(), model_.config.experts);  // none goes to some
  SensitivityMeter meter = Meter();
  ASSERT_EQ(meter.Begin(Embedded()), Status());
  const auto measured = meter.Measure(formats);
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_NEAR(measured->errors[static_cast<size_t>(LinearInput::kDown)][0], want, 1e-12 * want);
}

TEST_F(SensitivityTest, NothingIsLostWhereTheSmallestFormatIsTheModelsOwn) {
  SensitivityMeter meter = Meter();
  ASSERT_EQ(meter.Begin(Embedded()), Status());
  const LayerFormats formats[] = {Formats(DType::kF32)};
  const auto measured = meter.Measure(formats);
  ASSERT_TRUE(measured.ok()) << measured.status();
  for (const LinearInput input : kLinearInputs) EXPECT_EQ(measured->LossOf(input, 0), 0);
}

TEST_F(SensitivityTest, ALayerMeasuresTheSameAfterOnesThatWereSkipped) {
  const LayerFormats formats[] = {Formats(DType::kQ4_0), Formats(DType::kQ8_0)};
  SensitivityMeter all = Meter(), rest = Meter();
  ASSERT_EQ(all.Begin(Embedded()), Status());
  ASSERT_TRUE(all.Measure(formats).ok());
  ASSERT_EQ(rest.Begin(Embedded()), Status());
  ASSERT_EQ(rest.Skip(), Status());
  EXPECT_EQ(SensitivityToText(*all.Measure(formats)), SensitivityToText(*rest.Measure(formats)));
}

TEST_F(SensitivityTest, EndsWhenItIsCancelled) {
  SensitivityMeter meter = Meter([] { return true; });
  EXPECT_EQ(meter.Begin(Embedded()).code(), StatusCode::kCancelled);
}

TEST(SensitivityText, ReadsWhatIsWritten) {
  LayerSensitivity sensitivity;
  for (size_t i = 0; i < std::size(kLinearInputs); ++i) {
    sensitivity.divergences[i] = 1.0 / (3 + static_cast<double>(i));
    sensitivity.errors[i] = {0.1, 1e-7 / 3};
  }
  const auto read = SensitivityFromText(SensitivityToText(sensitivity), 2);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->divergences, sensitivity.divergences);
  EXPECT_EQ(read->errors, sensitivity.errors);
  EXPECT_FALSE(SensitivityFromText(SensitivityToText(sensitivity), 3).ok());
  for (const char* text : {"", "1", "{}", R"({"divergences": [1, 2, 3], "errors": [[1], [1], [1]]})",
                           R"({"divergences": [1, 2, 3, -1], "errors": [[1], [1], [1], [1]]})",
                           R"({"divergences": [1, 2, 3, 4], "errors": [[1], [1], ["x"], [1]]})"}) {
    EXPECT_EQ(Reason(SensitivityFromText(text, 1).status()), "truncated") << text;
  }
}

}  // namespace
}  // namespace terrace
