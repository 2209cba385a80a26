// Sixteen f32 lanes on AVX-512. The three vec16_*.h files define the same type and functions; a kernel file
// of one instruction set includes exactly one of them, inside its `#pragma GCC target`, and everything built
// on it has internal linkage. Multiply-adds are explicit: -ffp-contract=off keeps the compiler from making
// others.
//
// Max(a, b) and Min(a, b) give b when either is NaN.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/simd/pair_places.h"

#ifdef TERRACE_EMULATED_AVX512
#include "kernels/emulated/avx512.h"
#endif

namespace terrace {
namespace {

// Register blocking of the matrix product: 12 sums in flight and 12 at rest, 4 of weights, 1 of activations
// in 32 registers.
constexpr size_t kGemmStrips = 4, kGemmIntTokens = 3, kGemmFloatTokens = 3;
// Of attention: 4 queries by 4 keys, or by 4 x 16 elements of a value.
constexpr size_t kQueryBlock = 4, kKeyBlock = 4, kDimBlock = 4;
// So many tokens are few (MultiplyStrips).
constexpr size_t kGemmFewIntTokens = 6, kGemmFewFloatTokens = 16;
// How far ahead memory is asked for, in bytes: of the weights for one token (the processor's own prefetching
// stops at the end of each 4 KiB), and of keys and values.
constexpr size_t kGemmAhead = 4096, kAttentionAhead = 4096;

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
inline Vec16 LoadBF16(const std::byte* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline Vec16 LoadI8(const std::byte* from) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
}
// Through f16: a code's lower seven bits, where those of an f16 are, make 2^-8 of its value. The sign is in
// bits 15 and 14 at first; a NaN becomes all ones.
inline Vec16 LoadE4M3(const std::byte* from) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256i bits = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
  const __m256i magnitudes = _mm256_set1_epi16(0x3f80);
  const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(bits, magnitudes), magnitudes);
  const __m256i halves = _mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi16(0x4000), bits), is_nan);
  return Mul({_mm512_cvtph_ps(halves)}, Splat(256));
}

inline Vec16 LoadU8(const std::byte* from) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
}

// Sixteen int32 sums, and what goes into them: 64 bytes, four for each sum.
struct Sums16 {
  __m512i v;
};
struct Bytes64 {
  __m512i v;
};
inline Sums16 ZeroSums() { return {_mm512_setzero_si512()}; }
// *from * 2^kShift in every lane.
template <int kShift>
inline Sums16 ShiftedSplat(const int32_t* from) {
  return {_mm512_slli_epi32(_mm512_set1_epi32(*from), kShift)};
}
inline Vec16 ToFloats(Sums16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Vec16 SplatToFloats(const int32_t* from) { return {_mm512_cvtepi32_ps(_mm512_set1_epi32(*from))}; }
inline void StoreSums(int32_t* to, Sums16 a) { _mm512_storeu_si512(to, a.v); }
inline Bytes64 LoadBytes(const std::byte* from) { return {_mm512_loadu_si512(from)}; }
// The same four bytes for every sum.
inline Bytes64 SplatFour(const void* from) {
  int four;
  __builtin_memcpy(&four, from, sizeof(four));
  return {_mm512_set1_epi32(four)};
}
inline Vec16 AsFloats(Bytes64 a) { return {_mm512_castsi512_ps(a.v)}; }
// Keeps the compiler from loading `a` once more for each use.
#ifdef TERRACE_EMULATED_AVX512
inline void KeepInRegister(Bytes64&) {}
#else
inline void KeepInRegister(Bytes64& a) { asm("" : "+v"(a.v)); }
#endif
inline void Prefetch(const std::byte* from) { __builtin_prefetch(from); }
inline Bytes64 LowNibbles(Bytes64 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(0x0f))}; }
inline Bytes64 HighNibbles(Bytes64 a) { return LowNibbles({_mm512_srli_epi16(a.v, 4)}); }
// codes | (bits shifted left by `shift`, which may be negative, and cut to kMask) in each byte.
template <char kMask>
inline Bytes64 AddBits(Bytes64 codes, Bytes64 bits, int shift) {
  const __m512i moved = shift >= 0 ? _mm512_slli_epi16(bits.v, static_cast<unsigned>(shift))
                                   : _mm512_srli_epi16(bits.v, static_cast<unsigned>(-shift));
  return {_mm512_or_si512(codes.v, _mm512_and_si512(moved, _mm512_set1_epi8(kMask)))};
}
inline void StoreBytes(std::byte* to, Bytes64 a) { _mm512_storeu_si512(to, a.v); }
// Each lane has elements that are kept of each four, and the places of the next two in its three lowest bits:
// what `by_place` (one of the controls of pair_places.h) makes of them. Then the places of the next four.
inline Bytes64 Spread(Bytes64 kept, Bytes64 places, const std::array<uint32_t, 16>& by_place) {
  const __m512i control = _mm512_permutexvar_epi32(places.v, _mm512_loadu_si512(by_place.data()));
  return {_mm512_shuffle_epi8(kept.v, _mm512_or_si512(control, _mm512_loadu_si512(kLaneStarts.data())))};
}
inline Bytes64 NextPlaces(Bytes64 places) { return {_mm512_srli_epi32(places.v, 3)}; }
// Each byte with its highest bit turned over: signed ones become unsigned ones, 128 more.
inline Bytes64 FlipSigns(Bytes64 a) { return {_mm512_xor_si512(a.v, _mm512_set1_epi8(-128))}; }
// The sums of the four signed bytes of each lane.
inline Sums16 SumFours(Bytes64 a) {
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi8(1), a.v);
  return {_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))};
}

// Sixteen int32 sums of products, exactly: Add(step, Prepare(codes), values) adds to each its four unsigned
// codes of kBits bits times its four int8 values. Steps count from 0 in each block of eight. The bias is what
// the sums begin with; it is given twice, and where it is added is this class's affair. kAlone: there is no
// other such object whose instructions could run between two of this one's.
#ifdef TERRACE_AVX512_VNNI
template <int kBits, bool kAlone>
class Dots {
 public:
  using Codes = Bytes64;
  using Values = Bytes64;
  static Codes Prepare(Bytes64 codes) { return codes; }
  static Values Splat(const int8_t* values) { return SplatFour(values); }
  void Begin(Sums16 bias) {
    sums_[0] = bias.v;
    if constexpr (kAlone) sums_[1] = _mm512_setzero_si512();
  }
  void Add(size_t step, Bytes64 codes, Values values) {
    __m512i& sum = sums_[kAlone ? step % 2 : 0];
    sum = _mm512_dpbusd_epi32(sum, codes.v, values.v);
  }
  Sums16 End(Sums16) const { return {kAlone ? _mm512_add_epi32(sums_[0], sums_[1]) : sums_[0]}; }

 private:
  __m512i sums_[kAlone ? 2 : 1];
};
#else
// vpmaddubsw adds two products in 16 bits. Codes of 4, 5 and 6 bits leave room for eight, four and two of
// these (8 * 2 * 15 * 127 = 30480, 31496 and 32004), so that most additions are of twice as many numbers.
template <int kBits, bool kAlone>
class Dots {
 public:
  using Codes = Bytes64;
  using Values = Bytes64;
  static Codes Prepare(Bytes64 codes) { return codes; }
  static Values Splat(const int8_t* values) { return SplatFour(values); }
  void Begin(Sums16) { sums_ = _mm512_setzero_si512(); }
  void Add(size_t step, Bytes64 codes, Values values) {
    constexpr size_t kRun = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
    const __m512i pairs = _mm512_maddubs_epi16(codes.v, values.v);
    pairs_ = step % kRun == 0 ? pairs : _mm512_add_epi16(pairs_, pairs);
    if (step % kRun + 1 == kRun) {
      sums_ = _mm512_add_epi32(sums_, _mm512_madd_epi16(pairs_, _mm512_set1_epi16(1)));
    }
  }
  Sums16 End(Sums16 bias) const { return {_mm512_add_epi32(sums_, bias.v)}; }

 private:
  __m512i pairs_, sums_;
};
// Eight bits leave room for one, if one factor is made positive by moving its sign to the other: 2 * 128 *
// 127 = 32512. The bias is then taken off the codes, not off the sums.
template <bool kAlone>
class Dots<8, kAlone> {
 public:
  struct Codes {
    Bytes64 size;
    __mmask64 is_negative;
  };
  using Values = Bytes64;
  static Codes Prepare(Bytes64 codes) {
    const __m512i value = _mm512_xor_si512(codes.v, _mm512_set1_epi8(-128));
    return {{_mm512_abs_epi8(value)}, _mm512_movepi8_mask(value)};
  }
  static Values Splat(const int8_t* values) { return SplatFour(values); }
  void Begin(Sums16) { sums_ = _mm512_setzero_si512(); }
  void Add(size_t, const Codes& codes, Values values) {
    const __m512i x = _mm512_mask_sub_epi8(values.v, codes.is_negative, _mm512_setzero_si512(), values.v);
    const __m512i pairs = _mm512_maddubs_epi16(codes.size.v, x);
    sums_ = _mm512_add_epi32(sums_, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  Sums16 End(Sums16) const { return {sums_}; }

 private:
  __m512i sums_;
};
inline void KeepInRegister(Dots<8, false>::Codes& a) { KeepInRegister(a.size); }
inline void KeepInRegister(Dots<8, true>::Codes& a) { KeepInRegister(a.size); }
#endif

#ifndef TERRACE_AVX512_BF16
constexpr bool kHasBF16Dots = false;
inline __m512 OddBF16(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
inline __m512 EvenBF16(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
#endif
// Each sum + its two bf16 weights times the two of a pair: the odd (upper) ones first, each fused.
#ifdef TERRACE_AVX512_BF16
constexpr bool kHasBF16Dots = true;
using BF16Pair = Bytes64;
inline BF16Pair SplatPair(const uint16_t* pair) { return SplatFour(pair); }
inline Vec16 DotBF16(Vec16 sums, Bytes64 weights, BF16Pair x) {
  return {_mm512_dpbf16_ps(sums.v, reinterpret_cast<__m512bh>(weights.v), reinterpret_cast<__m512bh>(x.v))};
}
#else
struct BF16Pair {
  __m512 even, odd;
};
inline BF16Pair SplatPair(const float* pair) { return {_mm512_set1_ps(pair[0]), _mm512_set1_ps(pair[1])}; }
inline Vec16 DotBF16(Vec16 sums, Bytes64 weights, BF16Pair x) {
  const __m512 odd = _mm512_fmadd_ps(OddBF16(weights.v), x.odd, sums.v);
  return {_mm512_fmadd_ps(EvenBF16(weights.v), x.even, odd)};
}
#endif

inline Vec16 Abs(Vec16 a) { return {_mm512_abs_ps(a.v)}; }
// To f16, bf16 and int8 (|a| <= 127), to nearest, ties to even; too large for f16 is an infinity.
inline void StoreF16(uint16_t* to, Vec16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void StoreBF16(uint16_t* to, Vec16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, is_odd), _mm512_set1_epi32(0x7fff));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i out = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(out, 16)));
}
inline void StoreI8(int8_t* to, Vec16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

inline float First(Vec16 a) { return _mm512_cvtss_f32(a.v); }
// The fixed tree: lane i meets lane i + 8, then i + 4, i + 2, i + 1.
inline float Sum(Vec16 a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
// Sums of sixteen vectors, each Sum() to the bit, in two steps that each halve what is left: quarter q of
// FoldFour has four partial sums of vector q, and lane 4 q + i of SumFolds the sum of quarter q of fold i.
inline __m512 AddHalves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
inline Vec16 FoldFour(Vec16 a, Vec16 b, Vec16 c, Vec16 d) {
  const __m512 low = AddHalves(a.v, b.v), high = AddHalves(c.v, d.v);
  return {_mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd))};
}
inline __m512 AddPairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
inline Vec16 SumFolds(Vec16 a, Vec16 b, Vec16 c, Vec16 d) {
  const __m512 low = AddPairs(a.v, b.v), high = AddPairs(c.v, d.v);
  return {_mm512_add_ps(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xdd))};
}
inline float Largest(Vec16 a) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

}  // namespace
}  // namespace terrace
