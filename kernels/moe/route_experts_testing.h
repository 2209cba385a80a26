// What the tests of routing on the emulator and on a GPU share: the routes of random logits by the host's
// definition, and what a device's may differ.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "base/parallel_for.h"
#include "gtest/gtest.h"
#include "kernels/moe/expert_groups.h"
#include "kernels/moe/route_experts.h"
#include "kernels/moe/route_experts_gpu.h"

namespace terrace {

struct RouteSizes {
  uint32_t tokens = 0, experts = 0, per_token = 0;
  bool normalizes = false;
};

// In memory of the host; unwritten.
struct RoutedTokens {
  RoutedTokens(const RouteSizes& sizes, uint32_t tokens_of_chunk)
      : chunk_tokens(tokens_of_chunk),
        chosen(sizes.tokens * sizes.per_token, 9999),
        weights(chosen.size(), -1),
        begin(sizes.experts + 1, 9999),
        pairs(chosen.size(), 9999),
        places(chosen.size(), 9999),
        chunks(MostExpertChunks(static_cast<uint32_t>(chosen.size()), sizes.experts, chunk_tokens),
               GpuExpertChunk{9999, 9999, 9999}) {}
  GpuExpertGroups groups() {
    return {.begin = begin.data(),
            .pairs = pairs.data(),
            .places = places.data(),
            .chunks = chunks.data(),
            .chunk_count = static_cast<uint32_t>(chunks.size()),
            .chunk_tokens = chunk_tokens};
  }
  // Of `chosen`, by the host.
  void Group() {
    ExpertGroups of;
    GroupPairs(chosen, begin.size() - 1, of);
    begin = of.begin;
    pairs = of.pairs;
    places = of.places;
    size_t next = 0;
    for (uint32_t expert = 0; expert < of.experts(); ++expert) {
      for (uint32_t first = begin[expert]; first < begin[expert + 1]; first += chunk_tokens)
        chunks.at(next++) = {expert, first, std::min(chunk_tokens, begin[expert + 1] - first)};
    }
    while (next < chunks.size()) chunks[next++] = {0, 0, 0};
  }

  uint32_t chunk_tokens;
  std::vector<uint32_t> chosen;
  std::vector<float> weights;
  std::vector<uint32_t> begin, pairs, places;
  std::vector<GpuExpertChunk> chunks;
};

inline std::vector<float> RandomLogits(const RouteSizes& sizes, uint32_t pitch, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> out(size_t{sizes.tokens} * pitch, std::nanf(""));  // what pads is not looked at
  for (size_t i = 0; i < out.size(); ++i) {
    if (i % pitch < sizes.experts) out[i] = normal(random);
  }
  return out;
}

// Of a device's weight d below the largest logit in exp(-d): the difference, log2(e) and their product round
// once each, which is 3 d 2^-24 of the weight; Exp2 is good to 2 ulp, 4 of these. So is a sum of weights,
// after 21 additions; then the quotient and the reference round. Below 2^-126 a device has zeros.
inline void ExpectRoutes(const RouteSizes& sizes, const std::vector<float>& logits, uint32_t pitch,
                         const RoutedTokens& got) {
  RoutedTokens want(sizes, got.chunk_tokens);
  ThreadPool pool(1);
  RouteExpertsRef({.logits = logits.data(),
                   .pitch = pitch,
                   .tokens = sizes.tokens,
                   .experts = sizes.experts,
                   .per_token = sizes.per_token,
                   .normalizes = sizes.normalizes,
                   .chosen = want.chosen.data(),
                   .weights = want.weights.data()},
                  pool);
  EXPECT_EQ(got.chosen, want.chosen);
  for (size_t pair = 0; pair < want.weights.size(); ++pair) {
    if (std::isnan(want.weights[pair])) {
      EXPECT_TRUE(std::isnan(got.weights[pair])) << pair;
      continue;
    }
    const auto row = logits.begin() + static_cast<ptrdiff_t>(pair / sizes.per_token * pitch);
    const float largest = *std::max_element(row, row + sizes.experts);
    float smallest = largest;
    for (uint32_t i = 0; i < sizes.experts; ++i) {
      if (std::isfinite(row[i])) smallest = std::min(smallest, row[i]);
    }
    const double error = (6.0 * (largest - smallest) + 4 + 4 + 21 + 2) * 0x1p-24;
    ASSERT_NEAR(got.weights[pair], want.weights[pair], error * want.weights[pair] + 0x1p-125) << pair;
  }

  want.Group();
  EXPECT_EQ(got.begin, want.begin);
  EXPECT_EQ(got.pairs, want.pairs);
  EXPECT_EQ(got.places, want.places);
  EXPECT_EQ(got.chunks, want.chunks);
}

}  // namespace terrace
