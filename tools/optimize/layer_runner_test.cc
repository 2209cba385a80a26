#include "tools/optimize/layer_runner.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/quant/weight_values.h"
#include "tools/optimize/testing_states.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

std::vector<std::vector<TokenId>> Sequences() {
  std::vector<std::vector<TokenId>> out;
  for (const size_t size : {size_t{1}, size_t{90}, size_t{17}, size_t{450}}) {  // more than a piece together
    out.emplace_back();
    for (size_t i = 0; i < size; ++i) out.back().push_back(static_cast<TokenId>((i * 7 + size * 13) % 1000));
  }
  return out;
}

// Keeps what it is shown.
class Watcher : public LayerObserver {
 public:
  Status OnInputs(LayerInput input, std::span<const float> x, size_t tokens) override {
    EXPECT_EQ(x.size() % tokens, 0u);
    const auto i = static_cast<size_t>(input.kind);
    tokens_[i] += tokens;
    widths_[i] = x.size() / tokens;
    rows_[i].insert(rows_[i].end(), x.begin(), x.end());
    return Status();
  }
  Status OnReady(LayerInput input) override {
    ready_.push_back(input.kind);
    return input.kind == fails_at ? Cancelled("enough") : Status();
  }
  size_t tokens_[4] = {}, widths_[4] = {};
  std::vector<float> rows_[4];
  std::vector<LinearInput> ready_;
  std::optional<LinearInput> fails_at;
};

// Hidden states of the embedding.
HiddenStates Embedded(const ModelConfig& config, const WeightSource& weights,
                      const std::vector<std::vector<TokenId>>& sequences) {
  const WeightMatrix table = MatrixOf(weights.Find(TensorName(config, TensorKind::kEmbedding)).value());
  std::vector<float> hidden;
  for (const auto& sequence : sequences) {
    for (const TokenId token : sequence) {
      hidden.resize(hidden.size() + table.columns);
      DecodeRow(table, static_cast<size_t>(token), hidden.data() + hidden.size() - table.columns);
    }
  }
  return StatesOf(hidden, table.columns);
}

// All layers, the last norm and the output matrix (which is the embedding).
std::vector<float> Logits(const ModelConfig& model, const WeightSource& weights,
                          const std::vector<std::vector<TokenId>>& sequences, size_t threads,
                          RopePairing pairing) {
  ThreadPool pool(threads);
  ModelConfig config = model;
  config.rope_pairing = pairing;
  auto runner = LayerRunner::Create(config, sequences, CpuOps(), pool);
  CHECK(runner.ok(), Message(runner.status()));
  HiddenStates states = Embedded(model, weights, sequences);
  for (uint32_t layer = 0; layer < model.layers; ++layer) {
    const auto loaded = LoadLayer(model, weights, layer, pairing, pool);
    CHECK(loaded.ok(), Message(loaded.status()));
    const Status status = (*runner)->Run(*loaded, states, states, nullptr);
    CHECK(status.ok(), Message(status));
  }
  const std::vector<float> hidden = ValuesOf(states);
  const auto norm = LoadVector(model, weights, TensorKind::kFinalNorm).value();
  const WeightMatrix output = MatrixOf(weights.Find(TensorName(model, TensorKind::kEmbedding)).value());
  std::vector<float> logits((*runner)->tokens() * output.rows);
  const GemmPart part = {ReferenceOps().layout(output, ComputeType::kF32, pool), logits.data()};
  ReferenceOps().gemm({.x = hidden.data(),
                       .norm = norm.data(),
                       .norm_epsilon = model.norm_epsilon,
                       .tokens = (*runner)->tokens(),
                       .parts = {&part, 1}},
                      pool);
  return logits;
}

// Of the transformer, sequence by sequence.
std::vector<float> TransformerLogits(const ModelConfig& config, const WeightSource& weights,
                                     const std::vector<std::vector<TokenId>>& sequences) {
  TestModel model(config, weights, CpuOps(), /*threads=*/2, /*blocks=*/64, KvDType::kF32, ComputeType::kF32);
  std::vector<float> out;
  for (const auto& sequence : sequences) {
    const auto logits = SequenceLogits(model, sequence);
    out.insert(out.end(), logits.begin(), logits.end());
  }
  return out;
}

// As kLogitTolerance of transformer_test: rounding of sums, as the two round at different places.
constexpr float kLogitTolerance = 2e-4f;

TEST(LayerRunner, GivesTheLogitsOfTheTransformer) {
  const auto sequences = Sequences();
  for (const std::string& path : {DemoFolder("terrace-demo-small"), DemoGguf("terrace-demo-small")}) {
    SCOPED_TRACE(path);
    const ModelFiles files = OpenTestModel(path);
    const auto want = TransformerLogits(files.config, *files.weights, sequences);
    const RopePairing own = files.config.rope_pairing;
    const RopePairing other = own == RopePairing::kHalves ? RopePairing::kNeighbours : RopePairing::kHalves;
    for (const RopePairing pairing : {own, other}) {
      const auto got = Logits(files.config, *files.weights, sequences, /*threads=*/2, pairing);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], kLogitTolerance) << i;
    }
  }
}

TEST(LayerRunner, HasTheSameBitsWithAnyNumberOfThreads) {
  const auto sequences = Sequences();
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  const auto with = [&](size_t threads) {
    return Logits(files.config, *files.weights, sequences, threads, files.config.rope_pairing);
  };
  const auto one = with(1);
  EXPECT_EQ(with(2), one);
  EXPECT_EQ(with(3), one);
}

class RunnerOfNano : public testing::Test {
 protected:
  RunnerOfNano()
      : files_(OpenTestModel(DemoFolder("terrace-demo-nano"))),
        layer_(LoadLayer(files_.config, *files_.weights, 1, files_.config.rope_pairing, pool_).value()),
        runner_(LayerRunner::Create(files_.config, sequences_, CpuOps(), pool_).value()),
        hidden_(Embedded(files_.config, *files_.weights, sequences_)) {}

  ThreadPool pool_{1};
  const std::vector<std::vector<TokenId>> sequences_ = Sequences();
  const ModelFiles files_;
  FloatLayer layer_;
  const std::unique_ptr<LayerRunner> runner_;
  HiddenStates hidden_;
};

TEST_F(RunnerOfNano, ShowsEveryInputOnceAndInOrder) {
  Watcher watcher;
  ASSERT_EQ(runner_->Run(layer_, hidden_, hidden_, &watcher), Status());
  EXPECT_EQ(watcher.ready_, std::vector<LinearInput>(std::begin(kLinearInputs), std::end(kLinearInputs)));
  for (const LinearInput input : kLinearInputs) {
    const auto i = static_cast<size_t>(input);
    EXPECT_EQ(watcher.tokens_[i], runner_->tokens());
    EXPECT_EQ(watcher.widths_[i], layer_.matrix(LinearsOf(input)[0]).columns);
  }
}

// What an observer makes of the linears is what is applied: without attention's output and the feed-forward
// part nothing is added to what came in.
TEST_F(RunnerOfNano, AppliesWhatTheObserverLeaves) {
  struct Eraser : Watcher {
    explicit Eraser(FloatLayer& changed) : layer(changed) {}
    Status OnReady(LayerInput input) override {
      if (input.kind == LinearInput::kAttentionOutput) std::ranges::fill(layer.attention_output.values, 0.0f);
      if (input.kind == LinearInput::kFfn) std::ranges::fill(layer.up.values, 0.0f);
      return Status();
    }
    FloatLayer& layer;
  } eraser(layer_);
  const std::vector<float> before = ValuesOf(hidden_);
  ASSERT_EQ(runner_->Run(layer_, hidden_, hidden_, &eraser), Status());
  EXPECT_EQ(ValuesOf(hidden_), before);
  const auto& last = eraser.rows_[static_cast<size_t>(LinearInput::kDown)];
  EXPECT_TRUE(std::ranges::all_of(last, [](float x) { return x == 0; }));
}

// Who only looks is shown the same, of the same layer; nothing else is to be had of Show.
TEST_F(RunnerOfNano, ShowsTheSameInOnePassAndWithoutWhatComesOut) {
  struct Looker : Watcher {
    bool changes_linears() const override { return false; }
  } looker, of_show;
  Watcher watcher, changer_of_show;
  HiddenStates to = hidden_.MakeAnother().value();
  const std::vector<float> before = ValuesOf(hidden_);
  ASSERT_EQ(runner_->Run(layer_, hidden_, to, &looker), Status());
  ASSERT_EQ(runner_->Show(layer_, hidden_, of_show), Status());
  ASSERT_EQ(runner_->Show(layer_, hidden_, changer_of_show), Status());
  EXPECT_EQ(ValuesOf(hidden_), before);
  ASSERT_EQ(runner_->Run(layer_, hidden_, hidden_, &watcher), Status());
  EXPECT_EQ(ValuesOf(hidden_), ValuesOf(to));
  for (const Watcher* const other :
       {static_cast<Watcher*>(&looker), static_cast<Watcher*>(&of_show), &changer_of_show}) {
    EXPECT_EQ(other->ready_, watcher.ready_);
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(other->rows_[i], watcher.rows_[i]) << i;
  }
}

// A sequence that is a piece, and the same one across the border of two.
TEST_F(RunnerOfNano, WherePiecesBeginChangesNoBit) {
  std::vector<TokenId> text(kPieceTokens - 1);
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<TokenId>(i * 31 % 1000);
  const std::vector<std::vector<TokenId>> alone = {text}, behind = {{5, 6, 7}, text};
  std::vector<std::vector<float>> got;
  for (const auto* const sequences : {&alone, &behind}) {
    HiddenStates hidden = Embedded(files_.config, *files_.weights, *sequences);
    const auto runner = LayerRunner::Create(files_.config, *sequences, CpuOps(), pool_);
    ASSERT_TRUE(runner.ok()) << runner.status();
    ASSERT_EQ((*runner)->Run(layer_, hidden, hidden, nullptr), Status());
    const std::vector<float> all = ValuesOf(hidden);
    got.emplace_back(all.end() - static_cast<std::ptrdiff_t>(text.size() * hidden.width()), all.end());
  }
  EXPECT_EQ(got[1], got[0]);
}

TEST_F(RunnerOfNano, AnErrorOfTheObserverEndsTheRun) {
  Watcher watcher;
  watcher.fails_at = LinearInput::kFfn;
  EXPECT_EQ(runner_->Run(layer_, hidden_, hidden_, &watcher), Cancelled("enough"));
  EXPECT_EQ(watcher.ready_.size(), 3u);
}

// Two mixtures as families have them: weights of a token's experts that add up to 1, and that do not.
std::vector<ModelConfig> Mixtures() {
  ModelConfig mixtral = RandomModel::SmallConfig(/*vocab_size=*/1000);
  mixtral.family = "mixtral";
  mixtral.hidden_size = 64;
  mixtral.heads = 2;
  mixtral.kv_heads = 1;
  mixtral.head_dim = 32;
  mixtral.ffn_size = 96;
  mixtral.experts = 5;
  mixtral.experts_per_token = 2;
  mixtral.normalizes_experts = true;
  ModelConfig qwen = mixtral;
  qwen.family = "qwen3_moe";
  qwen.has_head_norms = true;
  qwen.experts = 7;
  qwen.experts_per_token = 3;
  qwen.normalizes_experts = false;
  return {mixtral, qwen};
}

TEST(LayerRunnerWithExperts, GivesTheLogitsOfTheTransformerWithAnyNumberOfThreads) {
  const auto sequences = Sequences();
  for (const ModelConfig& config : Mixtures()) {
    SCOPED_TRACE(config.family);
    const RandomModel model(DType::kF32, /*seed=*/3, config);
    const auto got = Logits(config, model, sequences, /*threads=*/2, config.rope_pairing);
    EXPECT_LT(LargestDifference(got, TransformerLogits(config, model, sequences)), kLogitTolerance);
    for (const size_t threads : {1, 3})
      EXPECT_EQ(Logits(config, model, sequences, threads, config.rope_pairing), got);
  }
}

// A layer of a random mixture, and what an observer is shown of it.
class RunnerOfExperts : public testing::Test {
 protected:
  explicit RunnerOfExperts(const ModelConfig& config = Mixtures()[1])
      : config_(config),
        model_(DType::kF32, /*seed=*/4, config_),
        layer_(LoadLayer(config_, model_, 1, config_.rope_pairing, pool_).value()),
        runner_(LayerRunner::Create(config_, sequences_, CpuOps(), pool_).value()),
        hidden_(Embedded(config_, model_, sequences_)) {}

  // The rows that go into each expert.
  struct Watcher : LayerObserver {
    explicit Watcher(size_t experts) : ffn(experts), down(experts) {}
    Status OnInputs(LayerInput input, std::span<const float> x, size_t tokens) override {
      if (!IsPerExpert(input.kind)) return Status();
      auto& rows = (input.kind == LinearInput::kFfn ? ffn : down)[input.expert];
      const size_t width = x.size() / tokens;
      for (size_t i = 0; i < tokens; ++i) {
        const auto row = x.subspan(i * width, width);
        rows.emplace_back(row.begin(), row.end());
      }
      return Status();
    }
    Status OnReady(LayerInput input) override {
      if (IsPerExpert(input.kind)) ready.emplace_back(input.expert, input.kind);
      return Status();
    }
    std::vector<std::vector<std::vector<float>>> ffn, down;
    std::vector<std::pair<uint32_t, LinearInput>> ready;
  };

  static double Product(std::span<const float> row, std::span<const float> x) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += double{row[i]} * x[i];
    return sum;
  }

  ThreadPool pool_{2};
  const std::vector<std::vector<TokenId>> sequences_ = Sequences();
  const ModelConfig config_;
  const RandomModel model_;
  FloatLayer layer_;
  const std::unique_ptr<LayerRunner> runner_;
  HiddenStates hidden_;
};

TEST_F(RunnerOfExperts, EachExpertIsShownTheTokensThatGoToItAndWhatItMakesOfThem) {
  Watcher watcher(config_.experts), of_show(config_.experts);
  ASSERT_EQ(runner_->Show(layer_, hidden_, of_show), Status());
  ASSERT_EQ(runner_->Run(layer_, hidden_, hidden_, &watcher), Status());
  EXPECT_EQ(of_show.ffn, watcher.ffn);
  EXPECT_EQ(of_show.down, watcher.down);
  std::map<std::vector<float>, std::vector<uint32_t>> experts_of;  // each token's row
  for (uint32_t expert = 0; expert < config_.experts; ++expert) {
    ASSERT_EQ(watcher.down[expert].size(), watcher.ffn[expert].size());
    const FeedForward& ffn = layer_.experts[expert];
    for (size_t i = 0; i < watcher.ffn[expert].size(); ++i) {
      const std::vector<float>& x = watcher.ffn[expert][i];
      experts_of[x].push_back(expert);
      for (size_t row = 0; row < ffn.gate.rows; ++row) {
        const double gate = Product(ffn.gate.Row(row), x);
        ASSERT_NEAR(watcher.down[expert][i][row], gate / (1 + std::exp(-gate)) * Product(ffn.up.Row(row), x),
                    1e-5);
      }
    }
  }
  size_t shown = 0;
  for (const auto& [x, experts] : experts_of) {
    shown += experts.size();
    std::vector<std::pair<double, uint32_t>> logits;
    for (uint32_t expert = 0; expert < config_.experts; ++expert)
      logits.emplace_back(-Product(layer_.router.Row(expert), x), expert);
    std::ranges::sort(logits);
    std::set<uint32_t> chosen;
    for (size_t i = 0; i < config_.experts_per_token; ++i) chosen.insert(logits[i].second);
    EXPECT_EQ(std::set<uint32_t>(experts.begin(), experts.end()), chosen);
  }
  EXPECT_EQ(shown, runner_->tokens() * config_.experts_per_token);
}

TEST_F(RunnerOfExperts, ExpertsComeOneAfterTheOtherAlsoThoseThatNoTokenGoesTo) {
  layer_.router.values.assign(layer_.router.values.size(), 0);  // ties: the first three
  Watcher watcher(config_.experts);
  ASSERT_EQ(runner_->Run(layer_, hidden_, hidden_, &watcher), Status());
  std::vector<std::pair<uint32_t, LinearInput>> want;
  for (uint32_t expert = 0; expert < config_.experts; ++expert) {
    want.emplace_back(expert, LinearInput::kFfn);
    want.emplace_back(expert, LinearInput::kDown);
    EXPECT_EQ(watcher.ffn[expert].size(), expert < config_.experts_per_token ? runner_->tokens() : 0);
  }
  EXPECT_EQ(watcher.ready, want);
}

// What an observer makes of an expert is what comes out.
TEST_F(RunnerOfExperts, AppliesWhatTheObserverLeaves) {
  struct Eraser : Watcher {
    explicit Eraser(FloatLayer& changed) : Watcher(changed.experts.size()), layer(changed) {}
    Status OnReady(LayerInput input) override {
      FeedForward& expert = layer.experts[input.expert];
      if (input.kind == LinearInput::kFfn && input.expert == 2) std::ranges::fill(expert.up.values, 0.0f);
      if (input.kind == LinearInput::kDown && input.expert == 3) std::ranges::fill(expert.down.values, 0.0f);
      return Status();
    }
    FloatLayer& layer;
  } eraser(layer_);
  HiddenStates to = hidden_.MakeAnother().value(), again = hidden_.MakeAnother().value();
  ASSERT_EQ(runner_->Run(layer_, hidden_, again, nullptr), Status());
  ASSERT_EQ(runner_->Run(layer_, hidden_, to, &eraser), Status());
  EXPECT_NE(ValuesOf(to), ValuesOf(again));
  ASSERT_EQ(runner_->Run(layer_, hidden_, again, nullptr), Status());  // as it is now
  EXPECT_EQ(ValuesOf(to), ValuesOf(again));
  EXPECT_FALSE(eraser.down[2].empty());
  for (const auto& row : eraser.down[2]) EXPECT_EQ(row, std::vector<float>(config_.ffn_size));
  EXPECT_NE(eraser.down[3][0], std::vector<float>(config_.ffn_size));
}

// Weights that add up to 1, and rounding: of sums of up to three times as many numbers.
TEST(LayerRunnerWithExperts, ExpertsThatAreAlikeAreTheLayerWithoutExperts) {
  ModelConfig config = Mixtures()[1];
  config.normalizes_experts = true;
  const RandomModel model(DType::kF32, /*seed=*/5, config);
  ThreadPool pool(2);
  FloatLayer mixture = LoadLayer(config, model, 0, config.rope_pairing, pool).value();
  for (FeedForward& expert : mixture.experts) expert = mixture.experts[0];
  FloatLayer dense = mixture;
  static_cast<FeedForward&>(dense) = mixture.experts[0];
  dense.experts.clear();
  const auto sequences = Sequences();
  const auto runner = LayerRunner::Create(config, sequences, CpuOps(), pool).value();
  std::vector<std::vector<float>> got;
  for (const FloatLayer* layer : {&mixture, &dense}) {
    HiddenStates hidden = Embedded(config, model, sequences);
    ASSERT_EQ(runner->Run(*layer, hidden, hidden, nullptr), Status());
    got.push_back(ValuesOf(hidden));
  }
  EXPECT_LT(LargestDifference(got[0], got[1]), 1e-5);
}

TEST(LoadLayer, WeightsThatAreNotFiniteAreToldWithTensorAndRow) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  class Broken : public WeightSource {
   public:
    explicit Broken(const WeightSource& original) : original_(original) {}
    StatusOr<TensorView> Find(std::string_view name) const override {
      auto tensor = original_.Find(name);
      if (!name.ends_with("up_proj.weight")) return tensor;
      bytes_.assign(tensor->data, tensor->data + tensor->bytes);
      bytes_[tensor->shape[1] * 2 * 3] = std::byte{0};  // row 3 begins with an infinity
      bytes_[tensor->shape[1] * 2 * 3 + 1] = std::byte{0x7c};
      tensor->data = bytes_.data();
      return tensor;
    }
    const std::vector<Entry>& entries() const override { return original_.entries(); }
    const std::string& path() const override { return original_.path(); }

   private:
    const WeightSource& original_;
    mutable std::vector<std::byte> bytes_;
  };
  ThreadPool pool(1);
  const Status status =
      LoadLayer(files.config, Broken(*files.weights), 2, files.config.rope_pairing, pool).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
  EXPECT_EQ(Reason(status), "nonfinite");
  EXPECT_NE(Message(status).find("\"model.layers.2.mlp.up_proj.weight\": row 3"), std::string::npos)
      << status;
}

}  // namespace
}  // namespace terrace
