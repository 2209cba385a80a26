#include "tools/optimize/output_divergence.h"

#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"
#include "tools/optimize/testing_matrices.h"
#include "tools/optimize/testing_states.h"

namespace terrace {
namespace {

constexpr float kEpsilon = 1e-5f;

// ln of the probabilities that a hidden state ends in, in double.
std::vector<double> PlainLogprobs(std::span<const float> hidden, const std::vector<float>& norm,
                                  const FloatMatrix& output, double softcap) {
  double squares = 0;
  for (const float x : hidden) squares += double{x} * x;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(hidden.size()) + kEpsilon);
  std::vector<double> logits(output.rows);
  double sum = 0;
  for (size_t row = 0; row < output.rows; ++row) {
    const float* const weights = output.Row(row).data();
    for (size_t i = 0; i < hidden.size(); ++i) logits[row] += hidden[i] * scale * norm[i] * weights[i];
    if (softcap > 0) logits[row] = softcap * std::tanh(logits[row] / softcap);
    sum += std::exp(logits[row]);
  }
  for (double& logit : logits) logit -= std::log(sum);
  return logits;
}

// More outputs than a chunk and more tokens than a piece.
struct Head {
  FloatMatrix output = RandomFloats(2500, 32, /*seed=*/1);
  std::vector<float> norm = RandomFloats(1, 32, /*seed=*/2).values;
  FloatMatrix reference = RandomFloats(300, 32, /*seed=*/3);
  float softcap = 0;

  StatusOr<std::vector<double>> Measure(const std::vector<std::vector<float>>& streams,
                                        size_t threads) const {
    ThreadPool pool(threads);
    std::vector<HiddenStates> states;
    for (const std::vector<float>& stream : streams) states.push_back(StatesOf(stream, 32));
    return OutputDivergence(norm, kEpsilon, softcap, output.view(), CpuOps(), pool)
        .Measure(StatesOf(reference.values, 32), states);
  }
};

// Some logits are beyond the cap of 1, as in models that have one.
class OutputDivergenceOf : public testing::TestWithParam<float> {};
INSTANTIATE_TEST_SUITE_P(Softcaps, OutputDivergenceOf, testing::Values(0.0f, 1.0f));

TEST_P(OutputDivergenceOf, StreamsIsTheMeanDivergenceOfTheDistributions) {
  Head head;
  const float softcap = head.softcap = GetParam();
  std::vector<std::vector<float>> streams;
  for (const float size : {0.0f, 0.01f, 0.3f}) {
    FloatMatrix moved = head.reference;
    const FloatMatrix noise = RandomFloats(moved.rows, moved.columns, /*seed=*/4);
    for (size_t i = 0; i < moved.values.size(); ++i) moved.values[i] += size * noise.values[i];
    streams.push_back(moved.values);
  }
  const auto got = head.Measure(streams, /*threads=*/1);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ((*got)[0], 0);
  for (size_t i = 1; i < streams.size(); ++i) {
    double want = 0;
    for (size_t token = 0; token < head.reference.rows; ++token) {
      const auto p = PlainLogprobs(head.reference.Row(token), head.norm, head.output, softcap),
                 q = PlainLogprobs(std::span(streams[i]).subspan(token * 32, 32), head.norm, head.output,
                                   softcap);
      for (size_t k = 0; k < p.size(); ++k) want += std::exp(p[k]) * (p[k] - q[k]);
    }
    want /= static_cast<double>(head.reference.rows);
    EXPECT_NEAR((*got)[i], want, 1e-3 * want) << i;
  }
  EXPECT_EQ(*head.Measure(streams, /*threads=*/3), *got);
}

TEST(OutputDivergence, TellsLogitsThatAreNotFinite) {
  const Head head;
  std::vector<float> broken = head.reference.values;
  broken[299 * 32 + 5] = NAN;
  const Status status = head.Measure({head.reference.values, broken}, /*threads=*/1).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
  EXPECT_EQ(Reason(status), "nonfinite");
}

}  // namespace
}  // namespace terrace
