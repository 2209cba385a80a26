// Sixteen f32 lanes on AVX2 with FMA and F16C: two registers. See vec16_avx512.h for what the functions
// promise.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace terrace {
namespace {

// 8 registers of sums, 4 of weights, 2 of activations, of 16.
constexpr size_t kRowBlock = 2, kTokenBlock = 2;
constexpr size_t kDirect16BitBlocks = 4;
// Of attention: 2 queries by 2 keys, or by 2 x 16 elements of a value.
constexpr size_t kQueryBlock = 2, kKeyBlock = 2, kDimBlock = 2;

struct Vec16 {
  __m256 low, high;  // lanes 0 to 7, 8 to 15
};

inline Vec16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec16 Splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec16 Load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void Store(float* to, Vec16 a) {
  _mm256_storeu_ps(to, a.low);
  _mm256_storeu_ps(to + 8, a.high);
}
inline Vec16 LoadPartial(const float* from, size_t count) {
  float lanes[16] = {};
  for (size_t i = 0; i < count; ++i) lanes[i] = from[i];
  return Load(lanes);
}
inline void StorePartial(float* to, size_t count, Vec16 a) {
  float lanes[16];
  Store(lanes, a);
  for (size_t i = 0; i < count; ++i) to[i] = lanes[i];
}

inline Vec16 Add(Vec16 a, Vec16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Vec16 Sub(Vec16 a, Vec16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Vec16 Mul(Vec16 a, Vec16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Vec16 Div(Vec16 a, Vec16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Vec16 Fma(Vec16 a, Vec16 b, Vec16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Vec16 Max(Vec16 a, Vec16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Vec16 Min(Vec16 a, Vec16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Vec16 ZeroBelow(Vec16 x, float limit, Vec16 a) {
  const __m256 limits = _mm256_set1_ps(limit);
  return {_mm256_and_ps(_mm256_cmp_ps(x.low, limits, _CMP_NLT_UQ), a.low),
          _mm256_and_ps(_mm256_cmp_ps(x.high, limits, _CMP_NLT_UQ), a.high)};
}
inline __m256 PowerOfTwo(__m256 a) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(a), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(127 << 23)));
}
inline Vec16 PowerOfTwo(Vec16 a) { return {PowerOfTwo(a.low), PowerOfTwo(a.high)}; }

inline __m128i Load16Bytes(const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
inline Vec16 LoadF32(const std::byte* from) { return Load(reinterpret_cast<const float*>(from)); }
inline Vec16 LoadF16(const std::byte* from) {
  return {_mm256_cvtph_ps(Load16Bytes(from)), _mm256_cvtph_ps(Load16Bytes(from + 16))};
}
inline Vec16 SplatF16(const std::byte* from) {
  short bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  const __m256 each = _mm256_cvtph_ps(_mm_set1_epi16(bits));
  return {each, each};
}
inline __m256 FloatsFromBF16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec16 LoadBF16(const std::byte* from) {
  return {FloatsFromBF16(Load16Bytes(from)), FloatsFromBF16(Load16Bytes(from + 16))};
}
inline Vec16 LoadI8(const std::byte* from) {
  const __m128i bytes = Load16Bytes(from);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

inline float First(Vec16 a) { return _mm256_cvtss_f32(a.low); }
inline float Sum(Vec16 a) {
  const __m256 half = _mm256_add_ps(a.low, a.high);
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
inline __m256 SumEach8(const Vec16* a) {
  __m256 pairs[4], quads[2];
  for (int i = 0; i < 4; ++i) {
    const __m256 low = _mm256_add_ps(a[i].low, a[i].high), high = _mm256_add_ps(a[i + 4].low, a[i + 4].high);
    pairs[i] =
        _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  }
  for (int i = 0; i < 2; ++i) {
    const __m256 low = pairs[2 * i], high = pairs[2 * i + 1];
    quads[i] = _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xee));
  }
  return _mm256_add_ps(_mm256_shuffle_ps(quads[0], quads[1], 0x88),
                       _mm256_shuffle_ps(quads[0], quads[1], 0xdd));
}
inline Vec16 SumEach(const Vec16 (&a)[16]) { return {SumEach8(a), SumEach8(a + 8)}; }
inline float Largest(Vec16 a) {
  const __m256 half = _mm256_max_ps(a.low, a.high);
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

}  // namespace
}  // namespace terrace
