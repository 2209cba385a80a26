#include "tools/bench/length_distribution.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr int kDraws = 100'000;

std::vector<uint32_t> Draws(const std::string& text, uint64_t seed = 3) {
  const auto lengths = LengthDistribution::Parse(text);
  EXPECT_TRUE(lengths.ok()) << lengths.status();
  std::vector<uint32_t> out;
  for (int i = 0; i < kDraws; ++i) out.push_back(lengths->Draw(seed, i, /*stream=*/1));
  return out;
}

TEST(LengthDistribution, AFixedLengthIsAlwaysTheSame) {
  const auto draws = Draws("128");
  EXPECT_EQ(*std::min_element(draws.begin(), draws.end()), 128u);
  EXPECT_EQ(*std::max_element(draws.begin(), draws.end()), 128u);
}

TEST(LengthDistribution, UniformLengthsAreAllOfTheRangeAndEquallyLikely) {
  const auto draws = Draws("uniform:64-73");
  std::vector<int> counts(10);
  for (const uint32_t draw : draws) {
    ASSERT_GE(draw, 64u);
    ASSERT_LE(draw, 73u);
    ++counts[draw - 64];
  }
  // A count has the deviation sqrt(n * 0.1 * 0.9): 5 of them.
  for (const int count : counts) EXPECT_NEAR(count, kDraws / 10.0, 5 * std::sqrt(kDraws * 0.09));
}

TEST(LengthDistribution, LogNormalLengthsHaveTheMedianAndTheSpread) {
  auto draws = Draws("lognormal:1000,0.5");
  std::sort(draws.begin(), draws.end());
  const auto quantile = [&](double q) { return std::log(draws[static_cast<size_t>(q * kDraws)]); };
  EXPECT_NEAR(quantile(0.5), std::log(1000), 0.01);
  EXPECT_NEAR(quantile(0.8413) - quantile(0.5), 0.5, 0.015);  // one sigma to either side
  EXPECT_NEAR(quantile(0.5) - quantile(0.1587), 0.5, 0.015);
}

TEST(LengthDistribution, LogNormalLengthsStayInTheirLimits) {
  for (const char* text : {"lognormal:1,4", "lognormal:1048576,4"}) {
    for (const uint32_t draw : Draws(text)) {
      ASSERT_GE(draw, 1u);
      ASSERT_LE(draw, LengthDistribution::kMaxLength);
    }
  }
}

TEST(LengthDistribution, DrawsAreDeterministicBySeedAndCounter) {
  for (const char* text : {"uniform:1-100000", "lognormal:1000,1"}) {
    EXPECT_EQ(Draws(text, 1), Draws(text, 1));
    EXPECT_NE(Draws(text, 1), Draws(text, 2));
  }
}

TEST(LengthDistribution, WhatMakesNoSenseIsRefused) {
  for (const char* text : {"",
                           "0",
                           "-1",
                           "x",
                           "12x",
                           "1.5",
                           "99999999999999999999",
                           "1048577",
                           "uniform:",
                           "uniform:5",
                           "uniform:0-5",
                           "uniform:7-5",
                           "uniform:1-9999999",
                           "uniform:1-2-3",
                           "lognormal:",
                           "lognormal:5",
                           "lognormal:0,1",
                           "lognormal:5,0",
                           "lognormal:5,-1",
                           "lognormal:5,nan",
                           "lognormal:inf,1",
                           "lognormal:5,5",
                           "normal:5,1"}) {
    EXPECT_EQ(LengthDistribution::Parse(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
  EXPECT_EQ(LengthDistribution::Parse("uniform:64-512")->text(), "uniform:64-512");
}

}  // namespace
}  // namespace terrace
