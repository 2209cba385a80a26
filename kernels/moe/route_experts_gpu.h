// route_experts.h and expert_groups.h on a GPU: nothing of it is read by the host, so that a step's graph
// holds it whatever the experts.
//
// Beside the groups there are chunks, which are what the grouped products' blocks take: up to chunk_tokens
// places of one expert. How many there are only the device knows; what is left over of chunk_count has none.
#pragma once

#include <cstdint>

namespace terrace {

inline constexpr uint32_t kMostGpuExperts = 512, kMostGpuExpertsPerToken = 16;

inline constexpr uint32_t kLeastChunkTokens = 8, kWideChunkTokens = 128;
constexpr bool IsChunkTokens(uint32_t tokens) {
  return tokens == kLeastChunkTokens || tokens == 16 || tokens == 32 || tokens == kWideChunkTokens;
}

struct GpuExpertChunk {
  uint32_t expert = 0;
  uint32_t first = 0, count = 0;  // places
  bool operator==(const GpuExpertChunk&) const = default;
};

struct GpuExpertGroups {                      // device pointers; see ExpertGroups
  uint32_t* begin = nullptr;                  // [experts + 1]
  uint32_t* pairs = nullptr;                  // [tokens * per_token]
  uint32_t* places = nullptr;                 // [tokens * per_token]
  GpuExpertChunk* chunks = nullptr;           // [chunk_count]
  uint32_t chunk_count = 0;                   // at least MostExpertChunks
  uint32_t chunk_tokens = kLeastChunkTokens;  // 8, 16, 32 or kWideChunkTokens
};

struct GpuRouteExpertsArgs {
  const float* logits = nullptr;  // [tokens, pitch]
  uint32_t pitch = 0;             // at least experts: a router's matrix may have padding
  uint32_t tokens = 0, experts = 0, per_token = 0;
  bool normalizes = false;
  uint32_t* chosen = nullptr;  // [tokens, per_token]
  float* weights = nullptr;    // [tokens, per_token]
  GpuExpertGroups groups;
};

// Every expert with tokens has a chunk that may be broken; the others are whole.
constexpr uint32_t MostExpertChunks(uint32_t pairs, uint32_t experts, uint32_t chunk_tokens) {
  const uint32_t used = pairs < experts ? pairs : experts;
  return used + (pairs - used) / chunk_tokens;
}
// What most experts' tokens fit in, were all used alike. An expert with more has several chunks, of which all
// but the first find its weights in L2; a wide one does the work of all its tokens however few it has. Bits
// do not depend on it, and speed has yet to be measured.
constexpr uint32_t ExpertChunkTokens(uint32_t pairs, uint32_t experts) {
  const uint32_t mean = pairs / experts;
  return mean <= 4 ? 8 : mean <= 8 ? 16 : mean < kWideChunkTokens / 2 ? 32 : kWideChunkTokens;
}

}  // namespace terrace
