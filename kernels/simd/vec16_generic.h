// Sixteen f32 lanes in plain C++, for processors without AVX2. See vec16_avx512.h for what the functions
// promise. Without an FMA instruction a multiply-add rounds twice, so results differ in the last bits from
// the other two.
#pragma once

#include <cstddef>

#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

constexpr size_t kRowBlock = 1, kTokenBlock = 2, kDirect16BitBlocks = 4;
constexpr size_t kQueryBlock = 2, kKeyBlock = 1, kDimBlock = 1;

struct Vec16 {
  float v[16];
};

template <typename Function>
inline Vec16 EachLane(Function function) {
  Vec16 out;
  for (size_t i = 0; i < 16; ++i) out.v[i] = function(i);
  return out;
}

inline Vec16 Splat(float x) {
  return EachLane([&](size_t) { return x; });
}
inline Vec16 Zero() { return Splat(0); }
inline Vec16 Load(const float* from) {
  return EachLane([&](size_t i) { return from[i]; });
}
inline void Store(float* to, const Vec16& a) {
  for (size_t i = 0; i < 16; ++i) to[i] = a.v[i];
}
inline Vec16 LoadPartial(const float* from, size_t count) {
  return EachLane([&](size_t i) { return i < count ? from[i] : 0; });
}
inline void StorePartial(float* to, size_t count, const Vec16& a) {
  for (size_t i = 0; i < count; ++i) to[i] = a.v[i];
}

inline Vec16 Add(const Vec16& a, const Vec16& b) {
  return EachLane([&](size_t i) { return a.v[i] + b.v[i]; });
}
inline Vec16 Sub(const Vec16& a, const Vec16& b) {
  return EachLane([&](size_t i) { return a.v[i] - b.v[i]; });
}
inline Vec16 Mul(const Vec16& a, const Vec16& b) {
  return EachLane([&](size_t i) { return a.v[i] * b.v[i]; });
}
inline Vec16 Div(const Vec16& a, const Vec16& b) {
  return EachLane([&](size_t i) { return a.v[i] / b.v[i]; });
}
inline Vec16 Fma(const Vec16& a, const Vec16& b, const Vec16& c) {
  return EachLane([&](size_t i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Vec16 Max(const Vec16& a, const Vec16& b) {
  return EachLane([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec16 Min(const Vec16& a, const Vec16& b) {
  return EachLane([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec16 ZeroBelow(const Vec16& x, float limit, const Vec16& a) {
  return EachLane([&](size_t i) { return x.v[i] < limit ? 0 : a.v[i]; });
}
inline Vec16 PowerOfTwo(const Vec16& a) {
  return EachLane(
      [&](size_t i) { return std::bit_cast<float>((std::bit_cast<uint32_t>(a.v[i]) << 23) + (127u << 23)); });
}

inline Vec16 LoadF32(const std::byte* from) {
  return EachLane([&](size_t i) { return LoadUnaligned<float>(from + 4 * i); });
}
inline Vec16 LoadF16(const std::byte* from) {
  return EachLane([&](size_t i) { return FloatFromF16(LoadUnaligned<uint16_t>(from + 2 * i)); });
}
inline Vec16 SplatF16(const std::byte* from) { return Splat(FloatFromF16(LoadUnaligned<uint16_t>(from))); }
inline Vec16 LoadBF16(const std::byte* from) {
  return EachLane([&](size_t i) { return FloatFromBF16(LoadUnaligned<uint16_t>(from + 2 * i)); });
}
inline Vec16 LoadI8(const std::byte* from) {
  return EachLane([&](size_t i) { return static_cast<float>(LoadUnaligned<int8_t>(from + i)); });
}

inline float First(const Vec16& a) { return a.v[0]; }
inline float Sum(Vec16 a) {
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}
inline Vec16 SumEach(const Vec16 (&a)[16]) {
  return EachLane([&](size_t i) { return Sum(a[i]); });
}
inline float Largest(Vec16 a) {
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  }
  return a.v[0];
}

}  // namespace
}  // namespace terrace
