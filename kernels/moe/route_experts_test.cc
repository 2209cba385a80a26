#include "kernels/moe/route_experts.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Routes {
  std::vector<uint32_t> chosen;
  std::vector<float> weights;
};

Routes Route(const OpTable& ops, const std::vector<float>& logits, size_t experts, size_t per_token,
             bool normalizes, size_t pitch = 0, size_t threads = 1) {
  ThreadPool pool(threads);
  const size_t tokens = logits.size() / (pitch > 0 ? pitch : experts);
  Routes out{.chosen = std::vector<uint32_t>(tokens * per_token, 9999),
             .weights = std::vector<float>(tokens * per_token)};
  ops.route_experts({.logits = logits.data(),
                     .pitch = pitch,
                     .tokens = tokens,
                     .experts = experts,
                     .per_token = per_token,
                     .normalizes = normalizes,
                     .chosen = out.chosen.data(),
                     .weights = out.weights.data()},
                    pool);
  return out;
}

// Weights are those of softmax_weights, whose test says how far they and their sum may be off, divided once.
TEST_P(EveryCpu, RoutesMatchTheReference) {
  for (const size_t experts : {1, 3, 8, 17, 60, 128, 512}) {
    const auto logits = RandomNormal(9 * experts, /*seed=*/experts);
    for (const size_t per_token : {1, 2, 4, 8, 16}) {
      if (per_token > experts) continue;
      for (const bool normalizes : {false, true}) {
        SCOPED_TRACE(testing::Message() << per_token << " of " << experts << ", normalizes " << normalizes);
        const Routes want = Route(ReferenceOps(), logits, experts, per_token, normalizes);
        const Routes got = Route(ops(), logits, experts, per_token, normalizes, 0, /*threads=*/2);
        EXPECT_EQ(got.chosen, want.chosen);
        const double largest_argument = 12, error = (6 + 75 + 1 + 4 * largest_argument) * kRounding;
        for (size_t i = 0; i < want.weights.size(); ++i)
          EXPECT_NEAR(got.weights[i], want.weights[i], error * want.weights[i]) << i;
      }
    }
  }
}

// The definition itself, by sorting.
TEST(RouteExpertsRef, TheLargestAreChosenAndWeighWhatSoftmaxSays) {
  for (const bool normalizes : {false, true}) {
    const size_t experts = 23, per_token = 5;
    const auto logits = RandomNormal(experts, /*seed=*/3);
    std::vector<size_t> order(experts);
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::sort(order, [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    double sum = 0;
    for (size_t i = 0; i < (normalizes ? per_token : experts); ++i) sum += std::exp(double{logits[order[i]]});
    const Routes got = Route(ReferenceOps(), logits, experts, per_token, normalizes);
    for (size_t i = 0; i < per_token; ++i) {
      EXPECT_EQ(got.chosen[i], order[i]);
      EXPECT_NEAR(got.weights[i], std::exp(double{logits[order[i]]}) / sum, kRounding);
    }
  }
}

TEST_P(EveryCpu, OfEqualLogitsTheLowerExpertIsFirst) {
  for (const OpTable* table : {&ops(), &ReferenceOps()}) {
    const Routes equal = Route(*table, std::vector<float>(40, -3), 40, 4, true);
    EXPECT_EQ(equal.chosen, (std::vector<uint32_t>{0, 1, 2, 3}));
    for (const float weight : equal.weights) EXPECT_EQ(weight, 0.25f);
    // Zeros of both signs are equal.
    EXPECT_EQ(Route(*table, {1, -0.0f, 2, 0.0f, -0.0f, 2, -1}, 7, 5, false).chosen,
              (std::vector<uint32_t>{2, 5, 0, 1, 3}));
    // p of both is 1 in f32, their logits differ.
    EXPECT_EQ(Route(*table, {0, -0x1p-30f, 0x1p-30f}, 3, 2, true).chosen, (std::vector<uint32_t>{2, 0}));
  }
}

TEST_P(EveryCpu, WhatIsNotFiniteMakesTheTokenNaNAndMinusInfinityWeighsNothing) {
  for (const OpTable* table : {&ops(), &ReferenceOps()}) {
    for (const size_t experts : {4, 40}) {
      for (const bool normalizes : {false, true}) {
        for (const float bad : {kNaN, kInfinity}) {
          for (size_t place = 0; place < experts; ++place) {
            auto logits = RandomNormal(3 * experts, /*seed=*/4);
            const Routes healthy = Route(*table, logits, experts, 3, normalizes);
            logits[experts + place] = bad;
            const Routes got = Route(*table, logits, experts, 3, normalizes);
            for (size_t i = 0; i < 9; ++i) {
              if (i / 3 == 1) {
                EXPECT_TRUE(std::isnan(got.weights[i])) << bad << " at " << place;
                EXPECT_EQ(got.chosen[i], i % 3);
              } else {
                EXPECT_EQ(got.weights[i], healthy.weights[i]);
                EXPECT_EQ(got.chosen[i], healthy.chosen[i]);
              }
            }
          }
        }
        for (const float weight :
             Route(*table, std::vector<float>(experts, -kInfinity), experts, 2, normalizes).weights)
          EXPECT_TRUE(std::isnan(weight));
        std::vector<float> one(experts, -kInfinity);
        one[experts - 1] = -1e30f;
        const Routes got = Route(*table, one, experts, 3, normalizes);
        EXPECT_EQ(got.chosen, (std::vector<uint32_t>{static_cast<uint32_t>(experts - 1), 0, 1}));
        EXPECT_EQ(got.weights, (std::vector<float>{1, 0, 0}));
      }
    }
  }
}

// Behind the logits lies what pads a router's matrix.
TEST_P(EveryCpu, ATokenIsTheSameInAnyBatchAndPitch) {
  const size_t experts = 8, pitch = 16, tokens = 70;
  for (const OpTable* table : {&ops(), &ReferenceOps()}) {
    std::vector<float> logits = RandomNormal(tokens * pitch, /*seed=*/5);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = i % pitch < experts ? logits[i] : kNaN;
    const Routes all = Route(*table, logits, experts, 2, true, pitch, /*threads=*/2);
    for (size_t token = 0; token < tokens; ++token) {
      const auto row = logits.begin() + static_cast<ptrdiff_t>(token * pitch);
      const Routes alone = Route(*table, {row, row + experts}, experts, 2, true);
      for (size_t slot = 0; slot < 2; ++slot) {
        EXPECT_EQ(all.chosen[2 * token + slot], alone.chosen[slot]);
        EXPECT_EQ(all.weights[2 * token + slot], alone.weights[slot]);
      }
    }
  }
}

INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
