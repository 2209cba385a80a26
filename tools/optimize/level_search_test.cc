#include "tools/optimize/level_search.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr DType kFormats[] = {DType::kQ8_0, DType::kQ4_0,    DType::kQ5_0,     DType::kQ4_K,
                              DType::kQ6_K, DType::kInt4G32, DType::kInt4G128, DType::kInt8};

std::vector<float> RandomNormal(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

size_t SharedBy(DType dtype) {
  const size_t shared = CodeFormatOf(dtype).shared;
  return shared == 0 ? 200 : shared;
}

double Error(DType dtype, const WeightLevel& level, const std::vector<float>& values,
             const std::vector<float>& importance) {
  const CodeFormat format = CodeFormatOf(dtype);
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = level.ValueOf(CodeOf(level, format, values[i])) - values[i];
    sum += importance[i] * error * error;
  }
  return sum;
}

TEST(SearchLevel, LosesNoMoreThanThePlainLevelAndLessOnAverage) {
  for (const DType dtype : kFormats) {
    SCOPED_TRACE(Info(dtype).name);
    double plain = 0, searched = 0;
    for (unsigned seed = 0; seed < 50; ++seed) {
      const auto values = RandomNormal(SharedBy(dtype), seed);
      auto importance = RandomNormal(values.size(), 1000 + seed);
      for (float& weight : importance) weight *= weight;
      WeightLevel of_plain = PlainLevel(dtype, values);
      WeightLevel found = SearchLevel(dtype, values, importance);
      if (CodeFormatOf(dtype).kind == LevelKind::kZeroPoint) {  // compared as they are stored
        for (WeightLevel* level : {&of_plain, &found}) {
          const BlockHead head = HeadOf(dtype, std::span(level, 1));
          LevelsOf(dtype, head, std::span(level, 1));
        }
      }
      const double best = Error(dtype, found, values, importance),
                   before = Error(dtype, of_plain, values, importance);
      EXPECT_LE(best, before) << seed;
      searched += best;
      plain += before;
    }
    const bool has_few_levels = CodeFormatOf(dtype).most < 32;
    EXPECT_LT(searched, (has_few_levels ? 0.97 : 1.0) * plain);
  }
}

// With all the importance on one value, that value becomes exact, or nearly where it has to be stored in F16.
TEST(SearchLevel, ServesWhatMatters) {
  for (const DType dtype : {DType::kQ4_0, DType::kQ4_K, DType::kInt4G32}) {
    for (unsigned seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " seed " << seed);
      auto values = RandomNormal(SharedBy(dtype), seed);
      std::vector<float> importance(values.size(), 1e-6f);
      values[5] = 1.37f;  // not so small that its code is 0
      importance[5] = 1;
      const WeightLevel plain = PlainLevel(dtype, values), found = SearchLevel(dtype, values, importance);
      EXPECT_LE(Error(dtype, found, values, importance),
                0.3 * Error(dtype, plain, values, importance) + 1e-4);
    }
  }
}

TEST(SearchLevel, ZerosAndValuesThatDoNotMatterHavePlainLevels) {
  for (const DType dtype : kFormats) {
    SCOPED_TRACE(Info(dtype).name);
    const std::vector<float> zeros(SharedBy(dtype)), ones(zeros.size(), 1.0f);
    EXPECT_EQ(SearchLevel(dtype, zeros, ones).scale, PlainLevel(dtype, zeros).scale);
    const auto values = RandomNormal(zeros.size(), /*seed=*/1);
    const WeightLevel plain = PlainLevel(dtype, values), found = SearchLevel(dtype, values, zeros);
    EXPECT_EQ(found.scale, plain.scale);
    EXPECT_EQ(found.minimum, plain.minimum);
  }
}

}  // namespace
}  // namespace terrace
