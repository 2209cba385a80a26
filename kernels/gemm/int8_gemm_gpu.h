// Activations as int8 gemm takes them: kernels/quant/int8_device.h says how they are made.
#pragma once

#include <cstdint>

namespace terrace {

struct GpuInt8Rows {
  const uint8_t* codes = nullptr;  // [tokens, columns] int8, aligned to 16 bytes
  const float* scales = nullptr;   // [tokens]: value = scale * code
};

}  // namespace terrace
