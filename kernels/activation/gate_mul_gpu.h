// What a feed-forward layer gates with (gate_function.h) on a GPU, where no product does it (kGated of
// gemm/gpu_gemm.h):
//   out = Gate(gate) * up
// in f32, rounded once. Where gate or up is not finite the result is an infinity or NaN. On CPUs it is part
// of gemm.
#pragma once

#include <cstdint>

#include "kernels/activation/gate_function.h"

namespace terrace {

struct GpuGateMulArgs {
  // [tokens, 2 width] bf16; columns come in tiles of 8 of the gate and the 8 of up beside them: column 16 i +
  // j is gate 8 i + j, column 16 i + 8 + j is up 8 i + j, j < 8.
  const uint16_t* in = nullptr;
  uint32_t tokens = 0, width = 0;  // width a multiple of 8
  GateFunction gate = GateFunction::kSilu;
  uint16_t* out = nullptr;      // [tokens, width] bf16, or null with out_e4m3
  uint8_t* out_e4m3 = nullptr;  // [tokens, width], or null: codes of the f32 values, largest of a row at 448
  float* scales = nullptr;      // [tokens], of out_e4m3: value = scale * code
};

}  // namespace terrace
