// Looks tokens up in the embedding matrix: out[t] = scale * table[tokens[t]], as f32 (exactly, but for the
// one rounding of the product).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/weight_matrix.h"

namespace terrace {

class ThreadPool;

struct EmbedArgs {
  const int32_t* tokens = nullptr;  // [count], each in [0, table.rows)
  WeightMatrix table;               // [vocabulary, width]
  float* out = nullptr;             // [count, width]
  size_t count = 0;
  float scale = 1;  // sqrt(width) in Gemma
};

void EmbedRef(const EmbedArgs& args, ThreadPool& pool);

}  // namespace terrace
