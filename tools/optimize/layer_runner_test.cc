#include "tools/optimize/layer_runner.h"

#include <algorithm>
#include <optional>

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
  Status OnInputs(LinearInput input, std::span<const float> x, size_t tokens) override {
    EXPECT_EQ(x.size() % tokens, 0u);
    tokens_[static_cast<size_t>(input)] += tokens;
    widths_[static_cast<size_t>(input)] = x.size() / tokens;
    rows_[static_cast<size_t>(input)].insert(rows_[static_cast<size_t>(input)].end(), x.begin(), x.end());
    return Status();
  }
  Status OnReady(LinearInput input) override {
    ready_.push_back(input);
    return input == fails_at ? Cancelled("enough") : Status();
  }
  size_t tokens_[4] = {}, widths_[4] = {};
  std::vector<float> rows_[4];
  std::vector<LinearInput> ready_;
  std::optional<LinearInput> fails_at;
};

// Hidden states of the embedding.
HiddenStates Embedded(const ModelFiles& files, const std::vector<std::vector<TokenId>>& sequences) {
  const WeightMatrix table =
      MatrixOf(files.weights->Find(TensorName(files.config, TensorKind::kEmbedding)).value());
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
std::vector<float> Logits(const ModelFiles& files, const std::vector<std::vector<TokenId>>& sequences,
                          const OpTable& ops, size_t threads, RopePairing pairing) {
  ThreadPool pool(threads);
  ModelConfig config = files.config;
  config.rope_pairing = pairing;
  auto runner = LayerRunner::Create(config, sequences, ops, pool);
  CHECK(runner.ok(), Message(runner.status()));
  HiddenStates states = Embedded(files, sequences);
  for (uint32_t layer = 0; layer < files.config.layers; ++layer) {
    const auto loaded = LoadLayer(files.config, *files.weights, layer, pairing, pool);
    CHECK(loaded.ok(), Message(loaded.status()));
    const Status status = (*runner)->Run(*loaded, states, states, nullptr);
    CHECK(status.ok(), Message(status));
  }
  const std::vector<float> hidden = ValuesOf(states);
  const auto norm = LoadVector(files.config, *files.weights, TensorKind::kFinalNorm).value();
  const WeightMatrix output =
      MatrixOf(files.weights->Find(TensorName(files.config, TensorKind::kEmbedding)).value());
  std::vector<float> logits((*runner)->tokens() * output.rows);
  const GemmPart part = {ReferenceOps().layout(output, ComputeType::kF32, pool), logits.data()};
  ReferenceOps().gemm({.x = hidden.data(),
                       .norm = norm.data(),
                       .norm_epsilon = files.config.norm_epsilon,
                       .tokens = (*runner)->tokens(),
                       .parts = {&part, 1}},
                      pool);
  return logits;
}

// As kLogitTolerance of transformer_test: rounding of sums, as the two round at different places.
TEST(LayerRunner, GivesTheLogitsOfTheTransformer) {
  const auto sequences = Sequences();
  for (const std::string& path : {DemoFolder("terrace-demo-small"), DemoGguf("terrace-demo-small")}) {
    SCOPED_TRACE(path);
    const ModelFiles files = OpenTestModel(path);
    TestModel model(files.config, *files.weights, CpuOps(), /*threads=*/2, /*blocks=*/64, KvDType::kF32,
                    ComputeType::kF32);
    std::vector<float> want;
    for (const auto& sequence : sequences) {
      const auto logits = SequenceLogits(model, sequence);
      want.insert(want.end(), logits.begin(), logits.end());
    }
    const RopePairing own = files.config.rope_pairing;
    const RopePairing other = own == RopePairing::kHalves ? RopePairing::kNeighbours : RopePairing::kHalves;
    for (const RopePairing pairing : {own, other}) {
      const auto got = Logits(files, sequences, CpuOps(), /*threads=*/2, pairing);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-4) << i;
    }
  }
}

TEST(LayerRunner, HasTheSameBitsWithAnyNumberOfThreads) {
  const auto sequences = Sequences();
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  const auto one = Logits(files, sequences, CpuOps(), 1, files.config.rope_pairing);
  EXPECT_EQ(Logits(files, sequences, CpuOps(), 2, files.config.rope_pairing), one);
  EXPECT_EQ(Logits(files, sequences, CpuOps(), 3, files.config.rope_pairing), one);
}

class RunnerOfNano : public testing::Test {
 protected:
  RunnerOfNano()
      : files_(OpenTestModel(DemoFolder("terrace-demo-nano"))),
        layer_(LoadLayer(files_.config, *files_.weights, 1, files_.config.rope_pairing, pool_).value()),
        runner_(LayerRunner::Create(files_.config, sequences_, CpuOps(), pool_).value()),
        hidden_(Embedded(files_, sequences_)) {}

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
    Status OnReady(LinearInput input) override {
      if (input == LinearInput::kAttentionOutput) std::ranges::fill(layer.attention_output.values, 0.0f);
      if (input == LinearInput::kFfn) std::ranges::fill(layer.up.values, 0.0f);
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
    HiddenStates hidden = Embedded(files_, *sequences);
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
