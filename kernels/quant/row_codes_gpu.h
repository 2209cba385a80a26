// In what form a row of activations goes into a product, on a GPU: codes of a byte each with one f32 scale.
#pragma once

#include <cstdint>

namespace terrace {

enum class RowCodes : uint8_t {
  kNone,  // bf16
  kE4M3,  // kernels/quant/e4m3_device.h
  kInt8,  // kernels/quant/int8_device.h
};

}  // namespace terrace
