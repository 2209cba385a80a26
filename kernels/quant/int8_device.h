// Rows of activations as int8 in device code, as compressed-tensors' INT8 models want theirs (dynamic,
// symmetric, a scale for each token):
//   scale = max |v| / 127,  code = v * (127 / max |v|) rounded to nearest, ties to even,  value = scale *
//   code
// A row whose max |v| is below kSmallestInt8Row is all zeros, scale 0; one that holds an infinity or a NaN
// has scale NaN: it is read back as NaN.
#pragma once

#include <cstdint>

#include "kernels/attention/kv_layer.h"
#include "kernels/quant/e4m3_device.h"
#include "kernels/quant/row_codes_gpu.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr float kLargestInt8 = 127;

// Four codes of values within 127.5, the first in the lowest byte. Added to 1.5 * 2^23 a value is rounded to
// a whole number, whose two's complement is in the lowest bits.
TERRACE_DEVICE uint32_t PackInt8(float v0, float v1, float v2, float v3) {
  constexpr float kWhole = 12582912;
  const uint32_t low =
      simt::BytePermute(simt::BitsOfFloat(v0 + kWhole), simt::BitsOfFloat(v1 + kWhole), 0x0040);
  const uint32_t high =
      simt::BytePermute(simt::BitsOfFloat(v2 + kWhole), simt::BitsOfFloat(v3 + kWhole), 0x0040);
  return simt::BytePermute(low, high, 0x5410);
}

// Of a row whose largest Magnitude is `largest`.
TERRACE_DEVICE CodeRow Int8RowOf(uint32_t largest) {
  if (largest >= kInfinityBits) return {simt::FloatOfBits(0x7fc00000), 0};
  const float value = simt::FloatOfBits(largest);
  if (value < kSmallestInt8Row) return {0, 0};
  return {value / kLargestInt8, kLargestInt8 / value};
}

template <RowCodes kCodes>
TERRACE_DEVICE CodeRow CodeRowOf(uint32_t largest) {
  if constexpr (kCodes == RowCodes::kInt8) {
    return Int8RowOf(largest);
  } else {
    return E4M3RowOf(largest);
  }
}
// Four values times `inverse` as codes.
template <RowCodes kCodes>
TERRACE_DEVICE uint32_t PackCodes(float v0, float v1, float v2, float v3, float inverse) {
  if constexpr (kCodes == RowCodes::kInt8) {
    return PackInt8(v0 * inverse, v1 * inverse, v2 * inverse, v3 * inverse);
  } else {
    return PackE4M3(v0 * inverse, v1 * inverse, v2 * inverse, v3 * inverse);
  }
}

}  // namespace terrace
