// Sixteen f32 lanes on AVX2 with FMA and F16C: two registers. See vec16_avx512.h for what the functions
// promise.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/pair_places.h"

namespace terrace {
namespace {

// Of the matrix product: 8 registers of sums, 2 of weights, 2 of activations, of 16.
constexpr size_t kGemmStrips = 1, kGemmIntTokens = 4, kGemmFloatTokens = 2;
// Of attention: 4 queries by a key, or by 16 elements of a value; converting to f32 costs more than loading.
constexpr size_t kQueryBlock = 4, kKeyBlock = 1, kDimBlock = 1;
// So many tokens are few (MultiplyStrips).
constexpr size_t kGemmFewIntTokens = 0, kGemmFewFloatTokens = 0;
// How far ahead memory is asked for, in bytes: of the weights for one token (the processor's own prefetching
// stops at the end of each 4 KiB), and of keys and values.
constexpr size_t kGemmAhead = 1024, kAttentionAhead = 2048;

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
// Through f16: a code's lower seven bits, where those of an f16 are, make 2^-8 of its value. The sign is in
// bits 15 and 14 at first; a NaN becomes all ones.
inline Vec16 LoadE4M3(const std::byte* from) {
  const __m256i bits = _mm256_slli_epi16(_mm256_cvtepi8_epi16(Load16Bytes(from)), 7);
  const __m256i magnitudes = _mm256_set1_epi16(0x3f80);
  const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(bits, magnitudes), magnitudes);
  const __m256i halves = _mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi16(0x4000), bits), is_nan);
  return Mul(
      {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))},
      Splat(256));
}

inline Vec16 LoadU8(const std::byte* from) {
  const __m128i bytes = Load16Bytes(from);
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}

struct Sums16 {
  __m256i low, high;
};
struct Bytes64 {
  __m256i low, high;
};
inline Sums16 ZeroSums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Sums16 AddSums(Sums16 a, Sums16 b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
template <int kShift>
inline Sums16 ShiftedSplat(const int32_t* from) {
  const __m256i each = _mm256_slli_epi32(_mm256_set1_epi32(*from), kShift);
  return {each, each};
}
inline Vec16 ToFloats(Sums16 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline Vec16 SplatToFloats(const int32_t* from) { return Splat(static_cast<float>(*from)); }
inline __m256i Load32Bytes(const void* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline void Store32Bytes(void* to, __m256i a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a); }
inline void StoreSums(int32_t* to, Sums16 a) {
  Store32Bytes(to, a.low);
  Store32Bytes(to + 8, a.high);
}
inline Bytes64 LoadBytes(const std::byte* from) { return {Load32Bytes(from), Load32Bytes(from + 32)}; }
inline Bytes64 SplatFour(const void* from) {
  int four;
  __builtin_memcpy(&four, from, sizeof(four));
  return {_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
}
inline Vec16 AsFloats(Bytes64 a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
inline void KeepInRegister(Bytes64& a) { asm("" : "+x"(a.low), "+x"(a.high)); }
inline void Prefetch(const std::byte* from) { __builtin_prefetch(from); }
inline Bytes64 LowNibbles(Bytes64 a) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)};
}
inline Bytes64 HighNibbles(Bytes64 a) {
  return LowNibbles({_mm256_srli_epi16(a.low, 4), _mm256_srli_epi16(a.high, 4)});
}
template <char kMask>
inline Bytes64 AddBits(Bytes64 codes, Bytes64 bits, int shift) {
  const auto add = [shift](__m256i to, __m256i x) {
    const __m256i moved = shift >= 0 ? _mm256_slli_epi16(x, shift) : _mm256_srli_epi16(x, -shift);
    return _mm256_or_si256(to, _mm256_and_si256(moved, _mm256_set1_epi8(kMask)));
  };
  return {add(codes.low, bits.low), add(codes.high, bits.high)};
}
inline void StoreBytes(std::byte* to, Bytes64 a) {
  Store32Bytes(to, a.low);
  Store32Bytes(to + 32, a.high);
}
inline Bytes64 Spread(Bytes64 kept, Bytes64 places, const std::array<uint32_t, 16>& by_place) {
  const __m256i controls = Load32Bytes(by_place.data()), starts = Load32Bytes(kLaneStarts.data());
  const auto spread = [&](__m256i elements, __m256i place) {
    const __m256i control = _mm256_permutevar8x32_epi32(controls, place);
    return _mm256_shuffle_epi8(elements, _mm256_or_si256(control, starts));
  };
  return {spread(kept.low, places.low), spread(kept.high, places.high)};
}
inline Bytes64 NextPlaces(Bytes64 places) {
  return {_mm256_srli_epi32(places.low, 3), _mm256_srli_epi32(places.high, 3)};
}
inline Bytes64 FlipSigns(Bytes64 a) {
  const __m256i signs = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(a.low, signs), _mm256_xor_si256(a.high, signs)};
}
inline __m256i SumPairs(__m256i words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }
inline Sums16 SumFours(Bytes64 a) {
  const __m256i ones = _mm256_set1_epi8(1);
  return {SumPairs(_mm256_maddubs_epi16(ones, a.low)), SumPairs(_mm256_maddubs_epi16(ones, a.high))};
}

constexpr bool kHasBF16Dots = false;
// Adds now: GCC would keep the products of a whole block, in memory, and add them up at its end.
inline void AddNow(__m256i& sum, __m256i x) {
  sum = _mm256_add_epi32(sum, x);
  asm("" : "+x"(sum));
}
inline void AddWordsNow(__m256i& sum, __m256i x) {
  sum = _mm256_add_epi16(sum, x);
  asm("" : "+x"(sum));
}
template <int kBits, bool kAlone>
class Dots {
 public:
  using Codes = Bytes64;
  using Values = __m256i;
  static Codes Prepare(Bytes64 codes) { return codes; }
  static Values Splat(const int8_t* values) { return SplatFour(values).low; }
  void Begin(Sums16) { sums_ = ZeroSums(); }
  void Add(size_t step, Codes codes, Values values) {
    constexpr size_t kRun = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
    if (step % kRun == 0) pairs_ = ZeroSums();
    AddWordsNow(pairs_.low, _mm256_maddubs_epi16(codes.low, values));
    AddWordsNow(pairs_.high, _mm256_maddubs_epi16(codes.high, values));
    if (step % kRun + 1 == kRun) sums_ = AddSums(sums_, {SumPairs(pairs_.low), SumPairs(pairs_.high)});
  }
  Sums16 End(Sums16 bias) const { return AddSums(sums_, bias); }

 private:
  Sums16 pairs_, sums_;
};
template <bool kAlone>
class Dots<8, kAlone> {
 public:
  struct Codes {
    Bytes64 value, size;
  };
  using Values = __m256i;
  static Codes Prepare(Bytes64 codes) {
    const __m256i bias = _mm256_set1_epi8(-128);
    const Bytes64 value = {_mm256_xor_si256(codes.low, bias), _mm256_xor_si256(codes.high, bias)};
    return {value, {_mm256_abs_epi8(value.low), _mm256_abs_epi8(value.high)}};
  }
  static Values Splat(const int8_t* values) { return SplatFour(values).low; }
  void Begin(Sums16) { sums_ = ZeroSums(); }
  void Add(size_t, const Codes& codes, Values values) {
    AddNow(sums_.low, Multiply(codes.size.low, codes.value.low, values));
    AddNow(sums_.high, Multiply(codes.size.high, codes.value.high, values));
  }
  Sums16 End(Sums16) const { return sums_; }

 private:
  static __m256i Multiply(__m256i size, __m256i value, __m256i x) {
    return SumPairs(_mm256_maddubs_epi16(size, _mm256_sign_epi8(x, value)));
  }
  Sums16 sums_;
};
inline void KeepInRegister(Dots<8, false>::Codes& a) { KeepInRegister(a.value), KeepInRegister(a.size); }
inline void KeepInRegister(Dots<8, true>::Codes& a) { KeepInRegister(a.value), KeepInRegister(a.size); }

inline __m256 OddBF16(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}
inline __m256 EvenBF16(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
struct BF16Pair {
  __m256 even, odd;
};
inline BF16Pair SplatPair(const float* pair) { return {_mm256_set1_ps(pair[0]), _mm256_set1_ps(pair[1])}; }
inline __m256 DotBF16(__m256 sum, __m256i weights, BF16Pair x) {
  return _mm256_fmadd_ps(EvenBF16(weights), x.even, _mm256_fmadd_ps(OddBF16(weights), x.odd, sum));
}
inline Vec16 DotBF16(Vec16 sums, Bytes64 weights, BF16Pair x) {
  return {DotBF16(sums.low, weights.low, x), DotBF16(sums.high, weights.high, x)};
}

inline Vec16 Abs(Vec16 a) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(a.low, mask), _mm256_and_ps(a.high, mask)};
}
inline __m256i BF16Bits(__m256 a) {  // in the lower halves of the lanes
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, is_odd), _mm256_set1_epi32(0x7fff));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
}
inline void StoreF16(uint16_t* to, Vec16 a) {
  auto* halves = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(halves, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}
inline void StoreBF16(uint16_t* to, Vec16 a) {
  const __m256i packed = _mm256_packus_epi32(BF16Bits(a.low), BF16Bits(a.high));
  Store32Bytes(to, _mm256_permute4x64_epi64(packed, 0xd8));
}
inline void StoreI8(int8_t* to, Vec16 a) {
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packs_epi32(_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

inline float First(Vec16 a) { return _mm256_cvtss_f32(a.low); }
inline float Sum(Vec16 a) {
  const __m256 half = _mm256_add_ps(a.low, a.high);
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
// Sums of sixteen vectors, each Sum() to the bit, in two steps that each halve what is left: quarter q of
// FoldFour has four partial sums of vector q, and lane 4 q + i of SumFolds the sum of quarter q of fold i.
inline __m256 FoldTwo(Vec16 a, Vec16 b) {
  const __m256 low = _mm256_add_ps(a.low, a.high), high = _mm256_add_ps(b.low, b.high);
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
inline Vec16 FoldFour(Vec16 a, Vec16 b, Vec16 c, Vec16 d) { return {FoldTwo(a, b), FoldTwo(c, d)}; }
inline __m256 AddPairs(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}
inline __m256 SumFolds8(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 low = AddPairs(a, b), high = AddPairs(c, d);
  return _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x88), _mm256_shuffle_ps(low, high, 0xdd));
}
inline Vec16 SumFolds(Vec16 a, Vec16 b, Vec16 c, Vec16 d) {
  return {SumFolds8(a.low, b.low, c.low, d.low), SumFolds8(a.high, b.high, c.high, d.high)};
}
inline float Largest(Vec16 a) {
  const __m256 half = _mm256_max_ps(a.low, a.high);
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

}  // namespace
}  // namespace terrace
