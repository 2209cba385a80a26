#include "kernels/moe/route_experts_device.h"

#include <cmath>

#include "gtest/gtest.h"
#include "kernels/moe/route_experts_testing.h"

namespace terrace {
namespace {

RoutedTokens Route(const RouteSizes& sizes, const std::vector<float>& logits, uint32_t pitch,
                   uint32_t chunk_tokens, uint64_t seed) {
  RoutedTokens out(sizes, chunk_tokens);
  const GpuRouteExpertsArgs args{.logits = logits.data(),
                                 .pitch = pitch,
                                 .tokens = sizes.tokens,
                                 .experts = sizes.experts,
                                 .per_token = sizes.per_token,
                                 .normalizes = sizes.normalizes,
                                 .chosen = out.chosen.data(),
                                 .weights = out.weights.data(),
                                 .groups = out.groups()};
  LaunchRouteExperts(args, [&](void (*kernel)(GpuRouteExpertsArgs), uint32_t blocks, uint32_t threads) {
    simt::RunSeeded(seed, {blocks}, threads, 0, kernel, args);
  });
  return out;
}
void ExpectRouted(const RouteSizes& sizes, const std::vector<float>& logits, uint32_t pitch,
                  uint32_t chunk_tokens) {
  SCOPED_TRACE(testing::Message() << sizes.tokens << " tokens to " << sizes.per_token << " of "
                                  << sizes.experts << ", normalizes " << sizes.normalizes << ", chunks of "
                                  << chunk_tokens);
  ExpectRoutes(sizes, logits, pitch, Route(sizes, logits, pitch, chunk_tokens, /*seed=*/sizes.tokens));
}

TEST(RouteExpertsDevice, MatchesTheReference) {
  for (const RouteSizes& sizes : {RouteSizes{1, 8, 2, true},
                                  {3, 1, 1, false},
                                  {5, 33, 16, true},
                                  {17, 128, 8, false},
                                  {70, 60, 4, true},
                                  {2, 400, 16, false},
                                  {9, 129, 1, true},
                                  {6, 16, 16, false},
                                  {150, 8, 2, true}}) {
    const uint32_t pitch = (sizes.experts + 15) / 16 * 16;
    ExpectRouted(sizes, RandomLogits(sizes, pitch, /*seed=*/sizes.tokens), pitch, sizes.normalizes ? 8 : 32);
  }
}

TEST(RouteExpertsDevice, OfEqualLogitsTheLowerExpertIsFirst) {
  for (const uint32_t experts : {8u, 40u, 130u}) {
    const RouteSizes sizes{3, experts, 5, true};
    std::vector<float> logits(3 * experts, -3);
    for (uint32_t i = 0; i < experts; ++i) {
      logits[experts + i] = i % 3 == 0 ? 0.0f : i % 3 == 1 ? -0.0f : -1.0f;
      logits[2 * experts + i] = static_cast<float>(i / 2 % 4);
    }
    ExpectRouted(sizes, logits, experts, 8);
  }
}

// One expert with all tokens, and all tokens to few.
TEST(RouteExpertsDevice, ExpertsMayHaveNoTokenOrAll) {
  for (const uint32_t tokens : {1u, 8u, 9u, 64u, 300u}) {
    for (const uint32_t per_token : {1u, 2u}) {
      const RouteSizes sizes{tokens, 16, per_token, false};
      std::vector<float> logits = RandomLogits(sizes, 16, /*seed=*/3);
      for (uint32_t token = 0; token < tokens; ++token) logits[token * 16 + 11] = 30;
      ExpectRouted(sizes, logits, 16, 8);
    }
  }
}

TEST(RouteExpertsDevice, WhatIsNotFiniteMakesTheTokenNaNAndMinusInfinityWeighsNothing) {
  for (const bool normalizes : {false, true}) {
    for (const uint32_t experts : {6u, 50u}) {
      const RouteSizes sizes{6, experts, 4, normalizes};
      std::vector<float> logits = RandomLogits(sizes, experts, /*seed=*/1);
      logits[1 * experts] = NAN;
      logits[2 * experts + experts - 1] = NAN;
      logits[3 * experts + 3] = INFINITY;
      std::fill_n(&logits[4 * experts], experts, -INFINITY);
      std::fill_n(&logits[5 * experts], experts, -INFINITY);
      logits[5 * experts + 4] = -2e30f;
      logits[5 * experts + 5] = -2e30f;
      ExpectRouted(sizes, logits, experts, 8);
    }
  }
}

TEST(RouteExpertsDevice, ATokenIsTheSameInAnyBatch) {
  const RouteSizes sizes{9, 60, 6, true};
  const std::vector<float> logits = RandomLogits(sizes, 64, /*seed=*/2);
  const RoutedTokens all = Route(sizes, logits, 64, 8, /*seed=*/4);
  for (uint32_t token = 0; token < sizes.tokens; ++token) {
    const auto row = logits.begin() + token * 64;
    const RoutedTokens alone = Route({1, 60, 6, true}, {row, row + 64}, 64, 8, /*seed=*/5);
    for (uint32_t slot = 0; slot < 6; ++slot) {
      EXPECT_EQ(all.chosen[token * 6 + slot], alone.chosen[slot]);
      EXPECT_EQ(all.weights[token * 6 + slot], alone.weights[slot]);
    }
  }
}

TEST(ExpertChunks, ThereIsRoomForAllHoweverTokensAreSpread) {
  for (const uint32_t experts : {1u, 3u, 8u}) {
    for (const uint32_t chunk_tokens : {8u, 16u, 32u}) {
      for (uint32_t pairs = 1; pairs < 200; ++pairs) {
        // The worst: experts with one more than whole chunks, as many as can be.
        uint32_t left = pairs, most = 0;
        for (uint32_t i = 0; i < experts && left > 0; ++i, --left) ++most;
        most += left / chunk_tokens;
        EXPECT_EQ(MostExpertChunks(pairs, experts, chunk_tokens), most);
      }
    }
  }
}

}  // namespace
}  // namespace terrace
