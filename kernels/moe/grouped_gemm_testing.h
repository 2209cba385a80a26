// What the tests of grouped products on the emulator and on a GPU share.
#pragma once

#include <memory>
#include <random>
#include <vector>

#include "kernels/gemm/gpu_gemm_testing.h"
#include "kernels/moe/route_experts_testing.h"

namespace terrace {

// Matrices of experts, all of one form.
struct TestExperts {
  TestExperts(DType dtype, uint32_t count, uint32_t rows, uint32_t columns, uint64_t seed, bool gated) {
    for (uint32_t i = 0; i < count; ++i) {
      weights.push_back(std::make_unique<TestGpuMatrix>(dtype, rows, columns, seed + 7 * i, gated));
      matrices.push_back(weights.back()->matrix());
    }
    form = matrices[0];
    form.codes = form.scales = nullptr;
  }
  std::vector<std::unique_ptr<TestGpuMatrix>> weights;
  std::vector<GpuMatrix> matrices;
  GpuMatrix form;  // of each
};

// Tokens go to different ones of the first `used` experts: with `used` of per_token each has all of them.
struct GroupedCase {
  uint32_t tokens, experts, used, per_token, chunk_tokens;
};
inline RoutedTokens RandomGroups(const GroupedCase& c, uint64_t seed) {
  RoutedTokens out({c.tokens, c.experts, c.per_token, false}, c.chunk_tokens);
  std::mt19937_64 random(seed);
  std::vector<uint32_t> experts(c.used);
  for (uint32_t i = 0; i < c.used; ++i) experts[i] = i;
  for (uint32_t pair = 0; pair < out.chosen.size(); ++pair) {
    const uint32_t slot = pair % c.per_token;
    std::swap(experts[slot], experts[slot + random() % (c.used - slot)]);
    out.chosen[pair] = experts[slot];
    out.weights[pair] = std::uniform_real_distribution<float>(0, 1)(random);
  }
  out.Group();
  return out;
}

// Rows of x in the order of places: those that an expert's product takes.
inline std::vector<uint16_t> RowsOfPlaces(const RoutedTokens& routed, uint32_t per_token,
                                          const std::vector<uint16_t>& x, uint32_t columns) {
  std::vector<uint16_t> out;
  for (const uint32_t pair : routed.pairs) {
    const auto row = x.begin() + static_cast<ptrdiff_t>(size_t{pair / per_token} * columns);
    out.insert(out.end(), row, row + columns);
  }
  return out;
}

inline std::vector<float> CombinedRows(const RoutedTokens& routed, uint32_t per_token,
                                       const std::vector<float>& rows, uint32_t width,
                                       const std::vector<float>& before) {
  std::vector<float> out = before;
  for (size_t i = 0; i < out.size(); ++i) {
    float sum = 0;
    for (size_t pair = i / width * per_token; pair < (i / width + 1) * per_token; ++pair)
      sum = std::fma(routed.weights[pair], rows[size_t{routed.places[pair]} * width + i % width], sum);
    out[i] = before[i] + sum;
  }
  return out;
}

}  // namespace terrace
