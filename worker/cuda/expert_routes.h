// Memory of a device for what chooses the experts of a step's tokens and brings together what each
// multiplies (kernels/moe/route_experts_gpu.h), laid out among other arrays of one buffer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/moe/route_experts_gpu.h"
#include "worker/cuda/array_layout.h"

namespace terrace {

struct ExpertRoutes {          // device pointers
  float* logits = nullptr;     // [tokens, rows of the router]
  uint32_t* chosen = nullptr;  // [tokens, per_token]
  float* weights = nullptr;    // [tokens, per_token]
  GpuExpertGroups groups;      // but for the numbers of chunks
};

class ExpertRoutesLayout {
 public:
  struct Sizes {
    uint64_t tokens = 0;  // at most
    uint32_t experts = 0, per_token = 0;
    uint64_t router_rows = 0;  // at least `experts`: it may have padding
  };
  ExpertRoutesLayout(const Sizes& sizes, ArrayLayout& layout) {
    const uint64_t pairs = sizes.tokens * sizes.per_token;
    logits_ = layout.Add<float>(sizes.tokens * sizes.router_rows);
    chosen_ = layout.Add<uint32_t>(pairs);
    weights_ = layout.Add<float>(pairs);
    begin_ = layout.Add<uint32_t>(sizes.experts + 1);
    pairs_ = layout.Add<uint32_t>(pairs);
    places_ = layout.Add<uint32_t>(pairs);
    chunks_ = layout.Add<GpuExpertChunk>(MostChunks(sizes));
  }

  ExpertRoutes At(std::byte* memory) const {
    return {.logits = reinterpret_cast<float*>(memory + logits_),
            .chosen = reinterpret_cast<uint32_t*>(memory + chosen_),
            .weights = reinterpret_cast<float*>(memory + weights_),
            .groups = {.begin = reinterpret_cast<uint32_t*>(memory + begin_),
                       .pairs = reinterpret_cast<uint32_t*>(memory + pairs_),
                       .places = reinterpret_cast<uint32_t*>(memory + places_),
                       .chunks = reinterpret_cast<GpuExpertChunk*>(memory + chunks_)}};
  }

 private:
  // Of chunks of any size.
  static uint64_t MostChunks(const Sizes& sizes) {
    const auto pairs = static_cast<uint32_t>(sizes.tokens * sizes.per_token);
    return MostExpertChunks(pairs, sizes.experts, kLeastChunkTokens);
  }

  uint64_t logits_, chosen_, weights_, begin_, pairs_, places_, chunks_;
};

}  // namespace terrace
