// embed.h on a GPU: out[t] = scale * table[tokens[t]], as f32.
#pragma once

#include <cstdint>

namespace terrace {

struct GpuEmbedArgs {
  // [count], device memory. What is outside of [0, vocab), as the -1 of a sampler that met a numeric error,
  // gets a row of NaN: a step may have been queued behind it before the host knows.
  const int32_t* tokens = nullptr;
  uint32_t count = 0;
  const uint16_t* table = nullptr;  // [vocab, width] bf16
  uint32_t vocab = 0, width = 0;    // width a multiple of 8
  float* out = nullptr;             // [count, width]
  float scale = 1;
};

}  // namespace terrace
