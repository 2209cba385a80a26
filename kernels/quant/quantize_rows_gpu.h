// Rows of bf16 to FP8 E4M3 with one f32 scale each (kernels/quant/e4m3_device.h says how), on a GPU.
#pragma once

#include <cstdint>

namespace terrace {

struct GpuQuantizeRowsArgs {
  const uint16_t* x = nullptr;   // [rows, width] bf16
  uint32_t rows = 0, width = 0;  // width a multiple of 8
  uint8_t* out = nullptr;        // [rows, width] codes
  float* scales = nullptr;       // [rows]
};

}  // namespace terrace
