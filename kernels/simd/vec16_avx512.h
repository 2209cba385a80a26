// Sixteen f32 lanes on AVX-512. The three vec16_*.h files define the same type and functions; a kernel file
// of one instruction set includes exactly one of them, inside its `#pragma GCC target`, and everything built
// on it has internal linkage. Multiply-adds are explicit: -ffp-contract=off keeps the compiler from making
// others.
//
// Max(a, b) and Min(a, b) give b when either is NaN.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace terrace {
namespace {

// Register blocking of the matrix product: 24 sums, 4 rows of weights, 1 of activations in 32 registers.
constexpr size_t kRowBlock = 4, kTokenBlock = 6;
constexpr size_t kDirect16BitBlocks = ~size_t{0};  // of tokens: 16-bit weights are never unpacked
// Of attention: 4 queries by 4 keys, or by 4 x 16 elements of a value.
constexpr size_t kQueryBlock = 4, kKeyBlock = 4, kDimBlock = 4;

struct Vec16 {
  __m512 v;
};

inline __mmask16 FirstLanes(size_t count) { return static_cast<__mmask16>((1u << count) - 1); }  // count < 16

inline Vec16 Zero() { return {_mm512_setzero_ps()}; }
inline Vec16 Splat(float x) { return {_mm512_set1_ps(x)}; }
inline Vec16 Load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void Store(float* to, Vec16 a) { _mm512_storeu_ps(to, a.v); }
// Lanes [0, count), count < 16; the others are 0 or stay unwritten.
inline Vec16 LoadPartial(const float* from, size_t count) {
  return {_mm512_maskz_loadu_ps(FirstLanes(count), from)};
}
inline void StorePartial(float* to, size_t count, Vec16 a) {
  _mm512_mask_storeu_ps(to, FirstLanes(count), a.v);
}

inline Vec16 Add(Vec16 a, Vec16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec16 Sub(Vec16 a, Vec16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec16 Mul(Vec16 a, Vec16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec16 Div(Vec16 a, Vec16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec16 Fma(Vec16 a, Vec16 b, Vec16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec16 Max(Vec16 a, Vec16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec16 Min(Vec16 a, Vec16 b) { return {_mm512_min_ps(a.v, b.v)}; }
// 0 where x < limit, else a.
inline Vec16 ZeroBelow(Vec16 x, float limit, Vec16 a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), a.v)};
}
// 2^n where the lowest bits of the mantissa of a hold the integer n, in [-126, 127].
inline Vec16 PowerOfTwo(Vec16 a) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(a.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(127 << 23)))};
}

// Sixteen weights at any address, exactly.
inline Vec16 LoadF32(const std::byte* from) { return {_mm512_loadu_ps(from)}; }
inline Vec16 LoadF16(const std::byte* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
inline Vec16 SplatF16(const std::byte* from) {
  short bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return {_mm512_cvtph_ps(_mm256_set1_epi16(bits))};
}
inline Vec16 LoadBF16(const std::byte* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline Vec16 LoadI8(const std::byte* from) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
}

inline float First(Vec16 a) { return _mm512_cvtss_f32(a.v); }
// The fixed tree: lane i meets lane i + 8, then i + 4, i + 2, i + 1.
inline float Sum(Vec16 a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
// Lane i is Sum(a[i]), to the bit; each step halves the vectors, adding two halves of two vectors at once.
inline Vec16 SumEach(const Vec16 (&a)[16]) {
  __m512 pairs[4], quads[2];  // rows 4 q + i, 4 q + 2 i in quarter q
  for (int i = 0; i < 4; ++i) {
    const auto halves = [&](int row) {  // of rows i and i + 4: lane l + lane l + 8
      return _mm512_add_ps(_mm512_shuffle_f32x4(a[row].v, a[row + 4].v, 0x44),
                           _mm512_shuffle_f32x4(a[row].v, a[row + 4].v, 0xee));
    };
    const __m512 low = halves(i), high = halves(i + 8);
    pairs[i] = _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    const __m512 low = pairs[2 * i], high = pairs[2 * i + 1];
    quads[i] = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
  }
  return {_mm512_add_ps(_mm512_shuffle_ps(quads[0], quads[1], 0x88),
                        _mm512_shuffle_ps(quads[0], quads[1], 0xdd))};
}
inline float Largest(Vec16 a) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

}  // namespace
}  // namespace terrace
