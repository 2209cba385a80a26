// Rows of bf16 to codes with one f32 scale each (kernels/quant/e4m3_device.h and int8_device.h say how), on a
// GPU.
#pragma once

#include <cstdint>

#include "kernels/quant/row_codes_gpu.h"

namespace terrace {

struct GpuQuantizeRowsArgs {
  const uint16_t* x = nullptr;   // [rows, width] bf16
  uint32_t rows = 0, width = 0;  // width a multiple of 8
  uint8_t* out = nullptr;        // [rows, width] codes
  float* scales = nullptr;       // [rows]
  RowCodes codes = RowCodes::kE4M3;
};

}  // namespace terrace
