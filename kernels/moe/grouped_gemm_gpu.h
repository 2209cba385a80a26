// Products of a mixture of experts on a GPU: the rows of each expert's places times that expert's matrix,
// all experts at once, by the groups that route_experts_gpu.h leaves on the device (Gale et al.,
// "MegaBlocks", 2022).
//
// Same bits: a place's outputs are those that stream_gemm gives its row and that matrix alone.
#pragma once

#include <cstdint>

#include "kernels/gemm/gpu_gemm.h"
#include "kernels/moe/route_experts_gpu.h"

namespace terrace {

struct GpuGroupedGemmArgs {
  const uint16_t* x = nullptr;  // [tokens, columns] bf16, below 2^32 elements; or [pairs, columns]
  uint32_t per_token = 0;       // a place's row of x is pairs[place] / per_token; 0: it is the place
  GpuExpertGroups groups;       // of which pairs and chunks are read
  GpuMatrix weights;            // what all experts' are, but for the pointers
  // [experts], in the device's memory: of each the pointers are read.
  const GpuMatrix* experts = nullptr;
  void* out = nullptr;  // [pairs, rows], or rows / 2, in the order of places
  GpuGemmOut kind = GpuGemmOut::kBF16;
  GateFunction gate = GateFunction::kSilu;  // of kGated
};

// out[t] (+)= sum_slot weights[t][slot] * rows[place of t's slot], added by slot, each with one rounding.
struct GpuCombineExpertsArgs {
  const float* rows = nullptr;                    // [pairs, width], in the order of places
  const uint32_t* places = nullptr;               // [tokens * per_token]
  const float* weights = nullptr;                 // [tokens, per_token]
  uint32_t tokens = 0, per_token = 0, width = 0;  // width a multiple of 4
  bool adds_to_out = false;
  float* out = nullptr;  // [tokens, width]
};

}  // namespace terrace
