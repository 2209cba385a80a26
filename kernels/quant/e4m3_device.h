// FP8 E4M3 (kernels/scalar_convert.h) in device code: from f32, and to f16.
//
// A row of values is encoded with one f32 scale, so that its largest magnitude is coded as 448:
//   scale = max |v| / 448,  code = v * (448 / max |v|) rounded to nearest, ties to even,  value = scale *
//   code
// A row whose max |v| is below kSmallestE4M3Row is all zeros, scale 0; one that holds an infinity or a NaN
// has scale NaN: it is read back as NaN.
#pragma once

#include <cstdint>

#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr float kLargestE4M3 = 448;
inline constexpr uint32_t kInfinityBits = 0x7f800000, kMagnitudeBits = 0x7fffffff;  // of f32

// 448 times the smallest normal f32: below it a scale would lose bits.
inline constexpr float kSmallestE4M3Row = 448 * 0x1p-126f;

// To nearest, ties to even; what passes 448 becomes 448, NaN 0x7f.
TERRACE_DEVICE uint32_t E4M3Code(float value) {
  const uint32_t bits = simt::BitsOfFloat(value), sign = bits >> 24 & 0x80;
  uint32_t magnitude = bits & kMagnitudeBits;
  if (magnitude > kInfinityBits) return 0x7f;
  if (magnitude > 0x43e00000) magnitude = 0x43e00000;  // 448
  if (magnitude < 0x3c800000) {  // 2^-6: a multiple of 2^-9, which is also the step of f32 from 2^14 to 2^15
    return sign | (simt::BitsOfFloat(simt::FloatOfBits(magnitude) + 0x1p14f) - 0x46800000);
  }
  const uint32_t is_odd = magnitude >> 20 & 1;
  return sign | ((magnitude - (120u << 23) + 0x7ffff + is_odd) >> 20);
}

// Four codes, the first in the lowest byte.
TERRACE_DEVICE uint32_t PackE4M3(float v0, float v1, float v2, float v3) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t codes;  // cvt puts its first operand into the upper half
  asm("{\n\t.reg .b16 low, high;\n\t"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n\t"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n\t"
      "mov.b32 %0, {low, high};\n\t}"
      : "=r"(codes)
      : "f"(v0), "f"(v1), "f"(v2), "f"(v3));
  return codes;
#else
  return E4M3Code(v0) | E4M3Code(v1) << 8 | E4M3Code(v2) << 16 | E4M3Code(v3) << 24;
#endif
}

// Codes 2 pair and 2 pair + 1 of four as f16, exactly; a NaN is one.
TERRACE_DEVICE uint32_t F16OfE4M3(uint32_t codes, uint32_t pair) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t two;
  if (pair == 0) {
    asm("{\n\t.reg .b16 low, high;\n\tmov.b32 {low, high}, %1;\n\tcvt.rn.f16x2.e4m3x2 %0, low;\n\t}"
        : "=r"(two)
        : "r"(codes));
  } else {
    asm("{\n\t.reg .b16 low, high;\n\tmov.b32 {low, high}, %1;\n\tcvt.rn.f16x2.e4m3x2 %0, high;\n\t}"
        : "=r"(two)
        : "r"(codes));
  }
  return two;
#else
  // Its bits, where those of an f16 are, make 2^-8 of the value, subnormals too. 1 more than the magnitude of
  // a NaN carries into the exponent's highest bit, the only one that is not yet set.
  const uint32_t upper = simt::BytePermute(codes, 0, pair == 0 ? 0x1404 : 0x3424);  // bytes of the halves
  const uint32_t magnitudes = upper >> 1 & 0x3f803f80, carries = (magnitudes + 0x00800080) & 0x40004000;
  return simt::MulF16x2((upper & 0x80008000) | magnitudes | carries, 0x5c005c00);
#endif
}

// As integers the magnitudes of floats rise as they do, and NaN lies above all of them.
TERRACE_DEVICE uint32_t Magnitude(float value) { return simt::BitsOfFloat(value) & kMagnitudeBits; }
TERRACE_DEVICE uint32_t Larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// As PackE4M3, but what passes 448 once it is rounded is 0x7f: to the bit E4M3FromFloat (scalar_convert.h).
TERRACE_DEVICE uint32_t PackE4M3OrNaN(float v0, float v1, float v2, float v3) {
  constexpr uint32_t kMost = 0x43e80000;  // 464, which is rounded to 448
  uint32_t codes = PackE4M3(v0, v1, v2, v3);
  if (Magnitude(v0) > kMost) codes = (codes & 0xffffff00) | 0x0000007f;
  if (Magnitude(v1) > kMost) codes = (codes & 0xffff00ff) | 0x00007f00;
  if (Magnitude(v2) > kMost) codes = (codes & 0xff00ffff) | 0x007f0000;
  if (Magnitude(v3) > kMost) codes = (codes & 0x00ffffff) | 0x7f000000;
  return codes;
}

struct CodeRow {
  float scale, inverse;  // value = scale * code, code = value * inverse
};

// Of a row whose largest Magnitude is `largest`.
TERRACE_DEVICE CodeRow E4M3RowOf(uint32_t largest) {
  if (largest >= kInfinityBits) return {simt::FloatOfBits(0x7fc00000), 0};
  const float value = simt::FloatOfBits(largest);
  if (value < kSmallestE4M3Row) return {0, 0};
  return {value / kLargestE4M3, kLargestE4M3 / value};
}

}  // namespace terrace
