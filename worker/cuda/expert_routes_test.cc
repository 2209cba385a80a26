#include "worker/cuda/expert_routes.h"

#include <algorithm>
#include <vector>

#include "base/status.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

struct Array {
  const void* begin;
  uint64_t bytes;
};

// What steps of up to so many tokens may have of them, whatever the chunks' size.
uint64_t MostChunksOfSteps(const ExpertRoutesLayout::Sizes& sizes) {
  uint32_t most = 0;
  for (uint32_t tokens = 1; tokens <= sizes.tokens; ++tokens) {
    const uint32_t pairs = tokens * sizes.per_token;
    for (uint32_t chunk = 1; chunk <= kWideChunkTokens; ++chunk) {
      if (IsChunkTokens(chunk)) most = std::max(most, MostExpertChunks(pairs, sizes.experts, chunk));
    }
  }
  return most;
}

TEST(ExpertRoutes, EveryArrayHasRoomForEveryStepAndNoneLiesInAnother) {
  for (const ExpertRoutesLayout::Sizes& sizes :
       {ExpertRoutesLayout::Sizes{.tokens = 1, .experts = 8, .per_token = 2, .router_rows = 16},
        {.tokens = 7, .experts = 6, .per_token = 3, .router_rows = 16},
        {.tokens = 1000, .experts = 128, .per_token = 8, .router_rows = 128},
        {.tokens = 600, .experts = kMostGpuExperts, .per_token = kMostGpuExpertsPerToken, .router_rows = 512},
        {.tokens = 100}}) {  // no experts
    SCOPED_TRACE(Concat(sizes.tokens, " tokens, ", sizes.experts, " experts"));
    ArrayLayout layout;
    const uint64_t before = layout.Add<std::byte>(300);
    const ExpertRoutesLayout routes(sizes, layout);
    const uint64_t behind = layout.Add<std::byte>(1);
    std::vector<std::byte> memory(layout.bytes());
    const ExpertRoutes at = routes.At(memory.data());
    const uint64_t pairs = sizes.tokens * sizes.per_token;
    std::vector<Array> arrays = {{&memory[before], 300},
                                 {at.logits, sizes.tokens * sizes.router_rows * sizeof(float)},
                                 {at.chosen, pairs * sizeof(uint32_t)},
                                 {at.weights, pairs * sizeof(float)},
                                 {at.groups.begin, (sizes.experts + 1) * sizeof(uint32_t)},
                                 {at.groups.pairs, pairs * sizeof(uint32_t)},
                                 {at.groups.places, pairs * sizeof(uint32_t)},
                                 {at.groups.chunks, MostChunksOfSteps(sizes) * sizeof(GpuExpertChunk)},
                                 {&memory[behind], 1}};
    std::ranges::stable_sort(arrays, {}, &Array::begin);
    for (size_t i = 0; i < arrays.size(); ++i) {
      const auto at_byte =
          static_cast<uint64_t>(static_cast<const std::byte*>(arrays[i].begin) - memory.data());
      const auto end = i + 1 < arrays.size()
                           ? static_cast<const std::byte*>(arrays[i + 1].begin) - memory.data()
                           : static_cast<std::ptrdiff_t>(memory.size());
      EXPECT_EQ(at_byte % 256, 0u);
      EXPECT_LE(at_byte + arrays[i].bytes, static_cast<uint64_t>(end)) << "array " << i;
    }
  }
}

}  // namespace
}  // namespace terrace
