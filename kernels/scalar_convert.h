// Scalar conversions of elements. To f32 they are exact. From f32 they round to nearest, ties to even; what
// passes the largest finite value becomes an infinity, or NaN where a format has none; NaN stays NaN.
//
// E4M3 is the FP8 of the OCP's "8-bit Floating Point Specification" (2023): 1 bit of sign, 4 of exponent
// (bias 7), 3 of mantissa. The largest is 448, the smallest normal 2^-6, subnormals are multiples of 2^-9;
// there are no infinities, 0x7f and 0xff are NaN.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace terrace {

constexpr float FloatFromF16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));  // infinity, NaN
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero and subnormals
  return sign != 0 ? -magnitude : magnitude;
}

constexpr float FloatFromBF16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

constexpr uint16_t F16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520, half a step above the largest
  if (magnitude < 0x38800000) {  // 2^-14: a multiple of 2^-24, which is also the step of f32 from 0.5 to 1
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f));
  }
  const uint32_t is_odd = magnitude >> 13 & 1;
  return sign | static_cast<uint16_t>((magnitude - (112u << 23) + 0xfff + is_odd) >> 13);
}

constexpr uint16_t BF16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

constexpr float FloatFromE4M3(uint8_t code) {
  const uint32_t magnitude = code & 0x7f;
  if (magnitude == 0x7f) return std::bit_cast<float>(0x7fc00000);
  // Its bits, where those of an f16 are, make 2^-8 of the value, subnormals too.
  return FloatFromF16(static_cast<uint16_t>((code & 0x80) << 8 | magnitude << 7)) * 256;
}

// 464, half a step above the largest, is 448 still; a NaN is 0x7f.
constexpr uint8_t E4M3FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff;
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  if (magnitude > std::bit_cast<uint32_t>(464.0f)) return 0x7f;
  if (magnitude < 0x3c800000) {  // 2^-6: a multiple of 2^-9, which is also the step of f32 from 2^14 to 2^15
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
    return sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0x1p14f));
  }
  const uint32_t is_odd = magnitude >> 20 & 1;
  return sign | static_cast<uint8_t>((magnitude - (120u << 23) + 0x7ffff + is_odd) >> 20);
}

template <typename T>
T LoadUnaligned(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

}  // namespace terrace
