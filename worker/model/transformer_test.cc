#include "worker/model/transformer.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <map>

#include "gtest/gtest.h"
#include "kernels/quant/weight_values.h"
#include "worker/model/found_tensors.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

// Weights in memory: copies of another source's tensors, to be changed.
class FakeWeights : public WeightsInMemory {
 public:
  explicit FakeWeights(const WeightSource& original) : WeightsInMemory("fake", original.entries()) {}

  void Remove(std::string_view name) {
    std::erase_if(entries_, [&](const Entry& entry) { return entry.name == name; });
  }
  void Reshape(std::string_view name, const Shape& shape) {
    for (Entry& entry : entries_) {
      if (entry.name == name) entry.tensor.shape = shape;
    }
  }
  // Rounds every matrix to Q8_0 as GGML does: the scale is the largest magnitude of a block over 127.
  void Quantize() {
    for (Entry& entry : entries_) {
      if (entry.tensor.shape.rank != 2) continue;
      const WeightMatrix matrix{.dtype = entry.tensor.dtype,
                                .data = entry.tensor.data,
                                .rows = entry.tensor.shape[0],
                                .columns = entry.tensor.shape[1]};
      std::vector<std::byte>& bytes = storage_[entry.name];
      for (size_t i = 0; i < matrix.rows * matrix.columns; i += 32) AppendBlock(matrix, i, bytes);
      entry.tensor.dtype = DType::kQ8_0;
      entry.tensor.data = bytes.data();
      entry.tensor.bytes = bytes.size();
    }
  }

 private:
  static void AppendBlock(const WeightMatrix& matrix, size_t first, std::vector<std::byte>& bytes) {
    float values[32], largest = 0;
    for (size_t i = 0; i < 32; ++i) {
      values[i] = WeightAt(matrix, first / matrix.columns, first % matrix.columns + i);
      largest = std::max(largest, std::abs(values[i]));
    }
    const auto scale = std::bit_cast<uint16_t>(static_cast<_Float16>(largest / 127));
    bytes.push_back(static_cast<std::byte>(scale & 0xff));
    bytes.push_back(static_cast<std::byte>(scale >> 8));
    for (const float value : values) {
      const float steps = largest == 0 ? 0 : std::round(value / (largest / 127));
      bytes.push_back(static_cast<std::byte>(static_cast<int8_t>(steps)));
    }
  }

  std::map<std::string, std::vector<std::byte>> storage_;
};

std::vector<float> LogitsOf(const ModelConfig& config, const WeightSource& weights, const OpTable& ops,
                            const std::vector<int32_t>& tokens, ComputeType compute = ComputeType::kF32) {
  TestModel model(config, weights, ops, /*threads=*/1, /*blocks=*/64, KvDType::kF32, compute);
  return SequenceLogits(model, tokens);
}

// Each layer's sums of up to 384 products add a few 1e-7 of relative noise (the bounds in the ops' tests),
// which the norms carry on at about its size. Measured: 1.5e-5 at most. 2e-4 leaves room for other processors
// and still shows one weight or position in the wrong place.
constexpr double kLogitTolerance = 2e-4;

TEST(Transformer, EveryCpuBackendMatchesTheReference) {
  for (const char* name : kDemoModels) {
    const ModelFiles files = OpenTestModel(DemoFolder(name));
    const auto tokens = RandomTokens(90, files.config.vocab_size, /*seed=*/1);
    const auto want = LogitsOf(files.config, *files.weights, ReferenceOps(), tokens);
    for (const OpTable& ops : AllCpuOps()) {
      SCOPED_TRACE(testing::Message() << name << " with " << ops.name);
      EXPECT_LT(LargestDifference(LogitsOf(files.config, *files.weights, ops, tokens), want),
                kLogitTolerance);
    }
  }
}

// The reference multiplies matrices as they lie, so what was made stays; other kernels pack it.
TEST(Transformer, MatricesThatHaveToBeMadeGiveTheSameLogits) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kInt4G32, DType::kQ4_K}) {
    const RandomModel model(dtype, /*seed=*/21);
    const MadeModel made(model);
    const auto tokens = RandomTokens(20, model.config.vocab_size, /*seed=*/22);
    for (const OpTable* ops : {&ReferenceOps(), &CpuOps()}) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " with " << ops->name);
      EXPECT_EQ(LogitsOf(model.config, made, *ops, tokens), LogitsOf(model.config, model, *ops, tokens));
    }
  }
}

TEST(Transformer, BothFormatsGiveTheSameLogits) {
  for (const char* name : kDemoModels) {
    SCOPED_TRACE(name);
    const ModelFiles folder = OpenTestModel(DemoFolder(name)), gguf = OpenTestModel(DemoGguf(name));
    EXPECT_NE(folder.config.rope_pairing, gguf.config.rope_pairing);
    const auto tokens = RandomTokens(150, folder.config.vocab_size, /*seed=*/2);
    EXPECT_LT(LargestDifference(LogitsOf(folder.config, *folder.weights, CpuOps(), tokens),
                                LogitsOf(gguf.config, *gguf.weights, CpuOps(), tokens)),
              kLogitTolerance);
  }
}

// Every backend with fused multiply-adds follows one definition (kernels/gemm/activation_groups.h); only exp
// and attention may differ, by the roundings of kLogitTolerance, which roundings of activations at the middle
// between two int8 or bf16 then blow up: a difference of 2e-6 moves one activation in some thousand by a
// step.
TEST(Transformer, BackendsAgreeOnModelsOfEveryFormat) {
  for (const DTypeInfo& info : kDTypes) {
    SCOPED_TRACE(info.name);
    const RandomModel random(info.dtype, /*seed=*/1);
    const auto tokens = RandomTokens(40, random.config.vocab_size, /*seed=*/2);
    const auto want = LogitsOf(random.config, random, ReferenceOps(), tokens);
    double spread = 0;
    for (const float logit : want) spread += double{logit} * logit;
    spread = std::sqrt(spread / static_cast<double>(want.size()));
    for (const OpTable& ops : AllCpuOps()) {
      EXPECT_LT(LargestDifference(LogitsOf(random.config, random, ops, tokens), want),
                kLogitTolerance * (1 + spread));
      // bf16 and int8 of 128 round activations by 2^-9 of themselves and 1/254 of the largest.
      EXPECT_LT(LargestDifference(LogitsOf(random.config, random, ops, tokens, ComputeType::kAuto), want),
                0.1 * (1 + spread));
    }
  }
}

// Q8_0 rounds a weight by up to 1/254 of its block's largest, about 0.4 % of a typical row's spread, and
// activations as much for it.
TEST(Transformer, Q8_0WeightsGiveNearlyTheLogitsOfF16) {
  for (const char* name : kDemoModels) {
    SCOPED_TRACE(name);
    const ModelFiles files = OpenTestModel(DemoFolder(name));
    FakeWeights quantized(*files.weights);
    quantized.Quantize();
    double divergence = 0;
    size_t positions = 0, same_best = 0;
    for (const GoldenRow& row : GoldenRows(name)) {
      if (positions > 500) break;
      std::vector<int32_t> tokens = row.prompt;
      tokens.insert(tokens.end(), row.answer.begin(), row.answer.end());
      const auto exact = LogitsOf(files.config, *files.weights, CpuOps(), tokens);
      const auto rounded = LogitsOf(files.config, quantized, CpuOps(), tokens, ComputeType::kAuto);
      const size_t vocab_size = files.config.vocab_size;
      for (size_t i = 0; i < tokens.size(); ++i, ++positions) {
        const auto p = Logprobs(std::span(exact).subspan(i * vocab_size, vocab_size));
        const auto q = Logprobs(std::span(rounded).subspan(i * vocab_size, vocab_size));
        for (size_t k = 0; k < vocab_size; ++k) divergence += std::exp(p[k]) * (p[k] - q[k]);
        same_best += std::max_element(p.begin(), p.end()) - p.begin() ==
                     std::max_element(q.begin(), q.end()) - q.begin();
      }
    }
    EXPECT_LT(divergence / static_cast<double>(positions), 0.003);  // nats per token; measured: 0.0006 (nano)
    EXPECT_GT(static_cast<double>(same_best), 0.95 * static_cast<double>(positions));
  }
}

TEST(Transformer, GivesLogitsOfTheLastTokensAskedForInOrderOfTheSequences) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  TestModel model(files.config, *files.weights, CpuOps(), /*threads=*/1);
  const size_t vocab_size = files.config.vocab_size;
  const auto a = RandomTokens(20, files.config.vocab_size, 3),
             b = RandomTokens(7, files.config.vocab_size, 4);
  const auto of_a = SequenceLogits(model, a), of_b = SequenceLogits(model, b);
  const std::vector<BlockId> blocks_a = {5, 9}, blocks_b = {1}, blocks_c = {30, 31};
  const auto got = Forward(model, {.sequences = {{.tokens = a, .blocks = blocks_a, .logits = 2},
                                                 {.tokens = a, .blocks = blocks_c, .logits = 0},
                                                 {.tokens = b, .blocks = blocks_b, .logits = 1}}});
  std::vector<float> want(of_a.end() - static_cast<ptrdiff_t>(2 * vocab_size), of_a.end());
  want.insert(want.end(), of_b.end() - static_cast<ptrdiff_t>(vocab_size), of_b.end());
  EXPECT_EQ(std::vector<float>(got.begin(), got.end()), want);
}

TEST(Transformer, AnEmptyBatchGivesNothing) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  TestModel model(files.config, *files.weights, CpuOps(), /*threads=*/1);
  EXPECT_TRUE(Forward(model, {}).empty());
}

TEST(Transformer, CountsTiedWeightsOnce) {
  const struct {
    const char* name;
    uint64_t parameters;
  } cases[] = {
      {"terrace-demo-nano", 262'592}, {"terrace-demo-small", 869'760}, {"terrace-demo-base", 2'722'560}};
  for (const auto& c : cases) {
    const ModelFiles files = OpenTestModel(DemoFolder(c.name));
    TestModel model(files.config, *files.weights, CpuOps(), /*threads=*/1);
    EXPECT_EQ(model.transformer->parameters(), c.parameters);
    EXPECT_EQ(model.transformer->weight_bytes(), 2 * c.parameters);  // all F16
  }
}

TEST(Transformer, LoadingEndsWhenItIsCancelled) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  ThreadPool pool(1);
  int asked = 0;
  const Status status = Transformer::Load(files.config, *files.weights, CpuOps(), pool,
                                          {.is_cancelled = [&asked] { return ++asked == 3; }})
                            .status();
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_EQ(asked, 3);
}

TEST(Transformer, WeightsThatDoNotFitAreAnErrorWithBothSizes) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  ThreadPool pool(1);
  const Status status = Transformer::Load(files.config, *files.weights, CpuOps(), pool,
                                          {.compute = ComputeType::kF32, .free_bytes = 1000})
                            .status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(status), "weights_too_large");
  EXPECT_NE(Message(status).find("1000"), std::string::npos);
}

TEST(Transformer, AMissingOrMisshapenTensorIsADataLoss) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  ThreadPool pool(1);
  const auto load = [&](const auto& change) {
    FakeWeights weights(*files.weights);
    change(weights);
    return Transformer::Load(files.config, weights, CpuOps(), pool).status();
  };
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  EXPECT_TRUE(load([](auto&) {}).ok());
  const Status missing = load([&](auto& weights) { weights.Remove(name); });
  EXPECT_EQ(missing.code(), StatusCode::kDataLoss);
  EXPECT_EQ(Reason(missing), "missing_tensor");
  EXPECT_NE(Message(missing).find(name), std::string::npos);
  const Status misshapen = load([&](auto& weights) { weights.Reshape(name, {64, 256}); });
  EXPECT_EQ(misshapen.code(), StatusCode::kDataLoss);
  EXPECT_EQ(Reason(misshapen), "shape_mismatch");
  EXPECT_NE(Message(misshapen).find("[256, 64]"), std::string::npos) << Message(misshapen);
}

}  // namespace
}  // namespace terrace
