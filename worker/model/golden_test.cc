// The models' answers against those of an independent implementation (PyTorch, f32, the same F16 weights).
#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

// With ComputeType::kF32 both sides keep F16 weights exactly and compute in f32; they differ in the order of
// their sums and in the RoPE angles, which the reference rounds to f32 (up to 3e-5 rad at position 500).
// Measured over all rows: 2.3e-5 at most. 2e-3 leaves room for other processors and is a tenth of the
// smallest margin between the two best tokens of any golden step (0.0215), so that equal tokens follow.
constexpr double kLogprobTolerance = 2e-3;

void ExpectGolden(const std::string& path, const std::string& model, const OpTable& ops, size_t most_rows) {
  const ModelFiles files = OpenTestModel(path);
  TestModel test_model(files.config, *files.weights, ops, /*threads=*/2, /*blocks=*/64, KvDType::kF32,
                       ComputeType::kF32);
  double worst = 0;
  size_t rows = 0;
  for (const GoldenRow& row : GoldenRows(model)) {
    if (rows++ == most_rows) break;
    SCOPED_TRACE(testing::Message() << path << " with " << ops.name << ", row " << rows);
    std::vector<float> first_logits;
    EXPECT_EQ(GreedyTokens(test_model, row.prompt, row.answer.size(), first_logits), row.answer);
    const auto logprobs = Logprobs(first_logits);
    for (const auto& [token, want] : row.top_logprobs) {
      EXPECT_NEAR(logprobs[static_cast<size_t>(token)], want, kLogprobTolerance) << "token " << token;
      worst = std::max(worst, std::abs(logprobs[static_cast<size_t>(token)] - want));
    }
  }
  testing::Test::RecordProperty("worst logprob difference", std::to_string(worst));
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, EveryRowFromSafetensors) {
  ExpectGolden(DemoFolder(GetParam()), GetParam(), CpuOps(), SIZE_MAX);
}

TEST_P(Golden, EveryRowFromGguf) { ExpectGolden(DemoGguf(GetParam()), GetParam(), CpuOps(), SIZE_MAX); }

TEST_P(Golden, SomeRowsWithEveryBackend) {
  ExpectGolden(DemoFolder(GetParam()), GetParam(), ReferenceOps(), 1);
  ExpectGolden(DemoGguf(GetParam()), GetParam(), ReferenceOps(), 1);
  for (const OpTable& ops : AllCpuOps()) ExpectGolden(DemoFolder(GetParam()), GetParam(), ops, 3);
}

// How far a way to run `model` moves its answers, over every position of the golden rows.
struct Distance {
  double worst_logprob = 0;         // change of the token that is best with f32
  double worst_changed_margin = 0;  // with f32, between two best tokens that differ
  size_t positions = 0, same_best = 0;
};

Distance DistanceFromF32(const std::string& model, KvDType kv_dtype, ComputeType compute) {
  const ModelFiles files = OpenTestModel(DemoFolder(model));
  TestModel f32(files.config, *files.weights, CpuOps(), /*threads=*/2, /*blocks=*/64, KvDType::kF32,
                ComputeType::kF32);
  TestModel other(files.config, *files.weights, CpuOps(), /*threads=*/2, /*blocks=*/64, kv_dtype, compute);
  Distance distance;
  for (const GoldenRow& row : GoldenRows(model)) {
    std::vector<int32_t> tokens = row.prompt;
    tokens.insert(tokens.end(), row.answer.begin(), row.answer.end());
    const auto want = SequenceLogits(f32, tokens), got = SequenceLogits(other, tokens);
    const size_t vocab_size = files.config.vocab_size;
    for (size_t i = 0; i < want.size(); i += vocab_size) {
      const auto want_row = Logprobs(std::span(want).subspan(i, vocab_size));
      const auto got_row = Logprobs(std::span(got).subspan(i, vocab_size));
      const auto best = std::max_element(want_row.begin(), want_row.end()) - want_row.begin();
      const auto got_best = std::max_element(got_row.begin(), got_row.end()) - got_row.begin();
      const auto at = [](const std::vector<double>& x, ptrdiff_t token) {
        return x[static_cast<size_t>(token)];
      };
      distance.worst_logprob =
          std::max(distance.worst_logprob, std::abs(at(got_row, best) - at(want_row, best)));
      distance.worst_changed_margin =
          std::max(distance.worst_changed_margin, at(want_row, best) - at(want_row, got_best));
      distance.same_best += got_best == best ? 1 : 0;
      ++distance.positions;
    }
  }
  return distance;
}

class GoldenOfKv : public testing::TestWithParam<const char*> {};

// Rounding keys and values by a relative error moves log-probabilities in proportion to it: measured 21 times
// (nano, f16 and bf16), 17 to 21 times for int8 if its error is put at twice that of bf16 (half a step is
// 2^-8 of the row's largest element, which is some two to three times a usual one). 40 times leaves a factor
// of two. A best token may change only where the second was near: both may move by the bound. Of 2,910
// positions nano changes 1, 3 and 12. Of fp8, whose half step is 2^-4, what is in proportion becomes so much
// that it is no longer small: 17 times of twice that, and 94 positions.
TEST_P(GoldenOfKv, ASmallerKvDTypeMovesAnswersInProportionToItsRounding) {
  const struct {
    KvDType dtype;
    double error, most_changed;  // a share of the positions
  } cases[] = {{KvDType::kF16, 0x1p-11, 0.01},
               {KvDType::kBF16, 0x1p-8, 0.01},
               {KvDType::kInt8, 0x1p-7, 0.01},
               {KvDType::kFp8, 0x1p-3, 0.06}};
  for (const auto& [dtype, error, most_changed] : cases) {
    SCOPED_TRACE(KvDTypeName(dtype));
    const Distance distance = DistanceFromF32(GetParam(), dtype, ComputeType::kF32);
    EXPECT_GT(distance.worst_logprob, 0);
    EXPECT_LT(distance.worst_logprob, 40 * error);
    EXPECT_LT(distance.worst_changed_margin, 2 * 40 * error);
    EXPECT_LT(static_cast<double>(distance.positions - distance.same_best),
              most_changed * static_cast<double>(distance.positions));
  }
}

// Each product of a layer sees activations and weights that are off by up to 2^-9 of themselves, as it sees
// keys and values off by 2^-9 with a bf16 KV cache (half a step), but in seven products a layer instead of
// two.
class GoldenOfCompute : public testing::TestWithParam<const char*> {};

TEST_P(GoldenOfCompute, BF16ProductsMoveAnswersInProportionToTheirRounding) {
  const Distance distance = DistanceFromF32(GetParam(), KvDType::kF32, ComputeType::kAuto);
  EXPECT_GT(distance.worst_logprob, 0);
  EXPECT_LT(distance.worst_logprob, 40 * 0x1p-8);
  EXPECT_LT(distance.worst_changed_margin, 2 * 40 * 0x1p-8);
  EXPECT_GT(static_cast<double>(distance.same_best), 0.99 * static_cast<double>(distance.positions));
}

std::string ModelName(const testing::TestParamInfo<const char*>& param_info) {
  std::string name = param_info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, Golden, testing::ValuesIn(kDemoModels), ModelName);
INSTANTIATE_TEST_SUITE_P(All, GoldenOfCompute, testing::ValuesIn(kDemoModels), ModelName);
INSTANTIATE_TEST_SUITE_P(All, GoldenOfKv, testing::Values(kDemoModels[0], kDemoModels[1]), ModelName);

}  // namespace
}  // namespace terrace
