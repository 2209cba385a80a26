#include "tools/bench/latency_histogram.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

// The nearest-rank percentile by its definition.
double Oracle(std::vector<int64_t> samples, double percent) {
  std::sort(samples.begin(), samples.end());
  const auto rank = static_cast<size_t>(std::ceil(percent / 100 * static_cast<double>(samples.size())));
  return Seconds(Duration(samples[std::max<size_t>(rank, 1) - 1]));
}

TEST(LatencyHistogram, PercentilesAreNeverBelowTheSortedSamplesAndAtMostOneBucketAbove) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const size_t count = 1 + RandomBits(seed, 0) % 5000;
    std::vector<int64_t> samples;
    LatencyHistogram histogram;
    for (size_t i = 0; i < count; ++i) {  // evenly over 18 powers of ten, or few distinct ones
      const double exponent = RandomUniform(seed, i, 1) * (seed % 4 == 0 ? 2 : 18);
      samples.push_back(static_cast<int64_t>(std::pow(10, exponent)));
      histogram.Record(Duration(samples.back()));
    }
    double sum = 0;
    for (const int64_t sample : samples) sum += static_cast<double>(sample);
    EXPECT_EQ(histogram.count(), count);
    EXPECT_NEAR(histogram.mean(), sum / static_cast<double>(count) * 1e-9, histogram.mean() * 1e-9);
    EXPECT_EQ(histogram.max(), Oracle(samples, 100));
    EXPECT_EQ(histogram.Percentile(100), histogram.max());
    for (const double percent : {0.1, 1.0, 25.0, 50.0, 90.0, 95.0, 99.0, 99.9}) {
      const double want = Oracle(samples, percent), got = histogram.Percentile(percent);
      EXPECT_GE(got, want) << percent;
      EXPECT_LE(got, want * (1 + 1.0 / 256)) << percent;
    }
  }
}

TEST(LatencyHistogram, SmallSamplesAreExactAndTheLargestFits) {
  LatencyHistogram histogram;
  for (int i = 1; i <= 500; ++i) histogram.Record(Duration(i));
  for (int percent = 1; percent <= 100; ++percent)
    EXPECT_EQ(histogram.Percentile(percent), Seconds(Duration(percent * 5)));
  histogram.Record(Duration::max());
  EXPECT_EQ(histogram.Percentile(100), Seconds(Duration::max()));
}

TEST(LatencyHistogram, NoSampleIsZeroAndANegativeOneToo) {
  LatencyHistogram histogram;
  EXPECT_EQ(histogram.Percentile(99), 0);
  EXPECT_EQ(histogram.mean(), 0);
  histogram.Record(Duration(-5));
  histogram.Record(Duration(10), 3);
  EXPECT_EQ(histogram.count(), 4u);
  EXPECT_EQ(histogram.Percentile(25), 0);
  EXPECT_EQ(histogram.Percentile(26), Seconds(Duration(10)));
}

}  // namespace
}  // namespace terrace
