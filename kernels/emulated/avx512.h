// The AVX-512 instructions that simd/vec16_avx512.h uses, in plain code after the operations that Intel's
// Software Developer's Manual gives for them: so that the AVX-512 kernels are tested on processors without
// them (op_testing.h). Internal linkage, as everything here.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace terrace {
namespace {
namespace emulated {

// The elements of a vector.
template <typename T, size_t kCount = 64 / sizeof(T)>
struct Elements {
  Elements() = default;
  template <typename Vector>
  explicit Elements(const Vector& vector) {
    static_assert(sizeof(vector) == sizeof(v));
    std::memcpy(v, &vector, sizeof(v));
  }
  template <typename Vector>
  operator Vector() const {
    static_assert(sizeof(Vector) == sizeof(v));
    Vector vector;
    std::memcpy(&vector, v, sizeof(v));
    return vector;
  }
  T v[kCount];
};

template <typename T, size_t kCount = 64 / sizeof(T), typename Function>
inline Elements<T, kCount> Each(Function function) {
  Elements<T, kCount> out;
  for (size_t i = 0; i < kCount; ++i) out.v[i] = static_cast<T>(function(i));
  return out;
}
template <typename T, typename Vector, typename Function>
inline Vector Of(const Vector& a, Function function) {
  const Elements<T> x(a);
  return Each<T>([&](size_t i) { return function(x.v[i]); });
}
template <typename T, typename Vector, typename Function>
inline Vector OfBoth(const Vector& a, const Vector& b, Function function) {
  const Elements<T> x(a), y(b);
  return Each<T>([&](size_t i) { return function(x.v[i], y.v[i]); });
}

inline __m512 Set1Ps(float x) {
  return Each<float>([&](size_t) { return x; });
}
template <typename T>
inline __m512i Set1(T x) {
  return Each<T>([&](size_t) { return x; });
}
inline __m512 LoadPs(const void* from) {
  __m512 out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}
inline __m512i LoadSi512(const void* from) {
  __m512i out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}
template <typename Vector>
inline void Store(void* to, const Vector& a) {
  std::memcpy(to, &a, sizeof(a));
}
inline __m512 MaskzLoadPs(__mmask16 mask, const float* from) {
  return Each<float>([&](size_t i) { return (mask >> i & 1) != 0 ? from[i] : 0; });
}
inline void MaskStorePs(float* to, __mmask16 mask, __m512 a) {
  const Elements<float> x(a);
  for (size_t i = 0; i < 16; ++i) {
    if ((mask >> i & 1) != 0) to[i] = x.v[i];
  }
}

inline __m512 AddPs(__m512 a, __m512 b) {
  return OfBoth<float>(a, b, [](float x, float y) { return x + y; });
}
inline __m512 SubPs(__m512 a, __m512 b) {
  return OfBoth<float>(a, b, [](float x, float y) { return x - y; });
}
inline __m512 MulPs(__m512 a, __m512 b) {
  return OfBoth<float>(a, b, [](float x, float y) { return x * y; });
}
inline __m512 DivPs(__m512 a, __m512 b) {
  return OfBoth<float>(a, b, [](float x, float y) { return x / y; });
}
inline __m512 MaxPs(__m512 a, __m512 b) {
  return OfBoth<float>(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline __m512 MinPs(__m512 a, __m512 b) {
  return OfBoth<float>(a, b, [](float x, float y) { return x < y ? x : y; });
}
inline __m512 FmaddPs(__m512 a, __m512 b, __m512 c) {
  const Elements<float> x(a), y(b), z(c);
  return Each<float>([&](size_t i) { return __builtin_fmaf(x.v[i], y.v[i], z.v[i]); });
}
inline __m512 AbsPs(__m512 a) {
  return Of<uint32_t>(a, [](uint32_t x) { return x & 0x7fffffff; });
}
template <int kComparison>
inline __mmask16 CmpPsMask(__m512 a, __m512 b) {
  static_assert(kComparison == _CMP_NLT_UQ || kComparison == _CMP_UNORD_Q);
  const Elements<float> x(a), y(b);
  uint32_t mask = 0;
  for (size_t i = 0; i < 16; ++i) {
    const bool is_set =
        kComparison == _CMP_NLT_UQ ? !(x.v[i] < y.v[i]) : __builtin_isunordered(x.v[i], y.v[i]) != 0;
    mask |= uint32_t{is_set} << i;
  }
  return static_cast<__mmask16>(mask);
}
inline __m512 MaskzMovPs(__mmask16 mask, __m512 a) {
  const Elements<float> x(a);
  return Each<float>([&](size_t i) { return (mask >> i & 1) != 0 ? x.v[i] : 0; });
}
inline __m512i MaskMovEpi32(__m512i otherwise, __mmask16 mask, __m512i a) {
  const Elements<uint32_t> x(a), y(otherwise);
  return Each<uint32_t>([&](size_t i) { return (mask >> i & 1) != 0 ? x.v[i] : y.v[i]; });
}
inline __m512i MaskSubEpi8(__m512i otherwise, __mmask64 mask, __m512i a, __m512i b) {
  const Elements<uint8_t> x(a), y(b), z(otherwise);
  return Each<uint8_t>([&](size_t i) { return (mask >> i & 1) != 0 ? x.v[i] - y.v[i] : z.v[i]; });
}
inline __mmask64 Movepi8Mask(__m512i a) {
  const Elements<uint8_t> x(a);
  uint64_t mask = 0;
  for (size_t i = 0; i < 64; ++i) mask |= uint64_t{x.v[i]} >> 7 << i;
  return mask;
}
inline __m512i AbsEpi8(__m512i a) {
  return Of<int8_t>(a, [](int8_t x) { return x < 0 ? -x : x; });
}

template <typename T>
inline __m512i ShiftLeft(__m512i a, unsigned count) {
  return Of<T>(a, [&](T x) { return count >= 8 * sizeof(T) ? 0 : x << count; });
}
template <typename T>
inline __m512i ShiftRight(__m512i a, unsigned count) {
  return Of<T>(a, [&](T x) { return count >= 8 * sizeof(T) ? 0 : x >> count; });
}
template <typename T>
inline __m512i Add(__m512i a, __m512i b) {
  return OfBoth<T>(a, b, [](T x, T y) { return x + y; });
}
inline __m512i And(__m512i a, __m512i b) { return a & b; }
inline __m512i Or(__m512i a, __m512i b) { return a | b; }
inline __m512i Xor(__m512i a, __m512i b) { return a ^ b; }

inline __m512i MaddubsEpi16(__m512i a, __m512i b) {
  const Elements<uint8_t> x(a);
  const Elements<int8_t> y(b);
  return Each<int16_t>([&](size_t i) {
    const int sum = x.v[2 * i] * y.v[2 * i] + x.v[2 * i + 1] * y.v[2 * i + 1];
    return sum > INT16_MAX ? INT16_MAX : sum < INT16_MIN ? INT16_MIN : sum;
  });
}
inline __m512i MaddEpi16(__m512i a, __m512i b) {
  const Elements<int16_t> x(a), y(b);
  return Each<uint32_t>([&](size_t i) {
    return static_cast<uint32_t>(x.v[2 * i] * y.v[2 * i]) +
           static_cast<uint32_t>(x.v[2 * i + 1] * y.v[2 * i + 1]);
  });
}
inline __m512i DpbusdEpi32(__m512i sums, __m512i a, __m512i b) {
  const Elements<uint32_t> z(sums);
  const Elements<uint8_t> x(a);
  const Elements<int8_t> y(b);
  return Each<uint32_t>([&](size_t i) {
    int sum = 0;
    for (size_t j = 4 * i; j < 4 * i + 4; ++j) sum += x.v[j] * y.v[j];
    return z.v[i] + static_cast<uint32_t>(sum);
  });
}
// vdpbf16ps takes and gives zeros for subnormal numbers.
inline float Flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? x * 0 : x; }
inline __m512 DpbF16Ps(__m512 sums, __m512bh a, __m512bh b) {
  const Elements<float> z(sums);
  const Elements<uint32_t> x(a), y(b);
  const auto odd = [](uint32_t pair) { return Flushed(__builtin_bit_cast(float, pair & 0xffff0000)); };
  const auto even = [](uint32_t pair) { return Flushed(__builtin_bit_cast(float, pair << 16)); };
  return Each<float>([&](size_t i) {
    const float sum = Flushed(__builtin_fmaf(odd(x.v[i]), odd(y.v[i]), Flushed(z.v[i])));
    return Flushed(__builtin_fmaf(even(x.v[i]), even(y.v[i]), sum));
  });
}

template <typename From, typename To, typename Vector>
inline Elements<To, 16> Convert(const Vector& a) {
  const Elements<From, 16> x(a);
  return Each<To, 16>([&](size_t i) { return x.v[i]; });
}
inline __m512i CvtpsEpi32(__m512 a) {
  const Elements<float> x(a);
  return Each<int32_t>([&](size_t i) { return _mm_cvtss_si32(_mm_set_ss(x.v[i])); });
}
inline __m512 CvtphPs(__m256i a) {
  __m128i halves[2];
  std::memcpy(halves, &a, sizeof(a));
  const __m256 wide[2] = {_mm256_cvtph_ps(halves[0]), _mm256_cvtph_ps(halves[1])};
  return LoadPs(wide);
}
inline __m256 Half(__m512 a, int half) {
  __m256 halves[2];
  std::memcpy(halves, &a, sizeof(a));
  return halves[half];
}
inline __m256i CvtpsPh(__m512 a) {
  return _mm256_set_m128i(_mm256_cvtps_ph(Half(a, 1), _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(Half(a, 0), _MM_FROUND_TO_NEAREST_INT));
}
inline __m512 ShuffleF32x4(__m512 a, __m512 b, int control) {
  const Elements<float> x(a), y(b);
  return Each<float>([&](size_t i) {
    const size_t from = 4 * (static_cast<size_t>(control) >> (2 * (i / 4)) & 3) + i % 4;
    return i < 8 ? x.v[from] : y.v[from];
  });
}
inline __m512 ShufflePs(__m512 a, __m512 b, int control) {
  const Elements<float> x(a), y(b);
  return Each<float>([&](size_t i) {
    const size_t from = i / 4 * 4 + (static_cast<size_t>(control) >> (2 * (i % 4)) & 3);
    return i % 4 < 2 ? x.v[from] : y.v[from];
  });
}

inline __m512i PermutexvarEpi32(__m512i places, __m512i a) {
  const Elements<uint32_t> x(a);
  return Of<uint32_t>(places, [&](uint32_t place) { return x.v[place & 15]; });
}
inline __m512i ShuffleEpi8(__m512i a, __m512i control) {
  const Elements<uint8_t> x(a), places(control);
  return Each<uint8_t>(
      [&](size_t i) { return (places.v[i] & 0x80) != 0 ? 0 : x.v[i / 16 * 16 + (places.v[i] & 15)]; });
}

}  // namespace emulated
}  // namespace
}  // namespace terrace

#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x8_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_ps
#undef _mm512_slli_epi16
#undef _mm512_slli_epi32
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32
#define _mm512_abs_epi8 emulated::AbsEpi8
#define _mm512_abs_ps emulated::AbsPs
#define _mm512_add_epi16 emulated::Add<uint16_t>
#define _mm512_add_epi32 emulated::Add<uint32_t>
#define _mm512_add_ps emulated::AddPs
#define _mm512_and_si512 emulated::And
#define _mm512_castps512_ps256(a) emulated::Half(a, 0)
#define _mm512_castps_si512(a) ((__m512i)(a))
#define _mm512_castsi512_ps(a) ((__m512)(a))
#define _mm512_cmp_ps_mask(a, b, comparison) emulated::CmpPsMask<comparison>(a, b)
#define _mm512_cvtepi32_epi16 (__m256i) emulated::Convert<int32_t, int16_t>
#define _mm512_cvtepi32_epi8 (__m128i) emulated::Convert<int32_t, int8_t>
#define _mm512_cvtepi32_ps (__m512) emulated::Convert<int32_t, float>
#define _mm512_cvtepi8_epi32 (__m512i) emulated::Convert<int8_t, int32_t>
#define _mm512_cvtepu16_epi32 (__m512i) emulated::Convert<uint16_t, int32_t>
#define _mm512_cvtepu8_epi32 (__m512i) emulated::Convert<uint8_t, int32_t>
#define _mm512_cvtph_ps emulated::CvtphPs
#define _mm512_cvtps_epi32 emulated::CvtpsEpi32
#define _mm512_cvtps_ph(a, rounding) emulated::CvtpsPh(a)
#define _mm512_cvtss_f32(a) emulated::Elements<float>(a).v[0]
#define _mm512_div_ps emulated::DivPs
#define _mm512_dpbf16_ps emulated::DpbF16Ps
#define _mm512_dpbusd_epi32 emulated::DpbusdEpi32
#define _mm512_extractf32x8_ps emulated::Half
#define _mm512_fmadd_ps emulated::FmaddPs
#define _mm512_loadu_ps emulated::LoadPs
#define _mm512_loadu_si512 emulated::LoadSi512
#define _mm512_madd_epi16 emulated::MaddEpi16
#define _mm512_maddubs_epi16 emulated::MaddubsEpi16
#define _mm512_mask_mov_epi32 emulated::MaskMovEpi32
#define _mm512_mask_storeu_ps emulated::MaskStorePs
#define _mm512_mask_sub_epi8 emulated::MaskSubEpi8
#define _mm512_maskz_loadu_ps emulated::MaskzLoadPs
#define _mm512_maskz_mov_ps emulated::MaskzMovPs
#define _mm512_max_ps emulated::MaxPs
#define _mm512_min_ps emulated::MinPs
#define _mm512_movepi8_mask emulated::Movepi8Mask
#define _mm512_mul_ps emulated::MulPs
#define _mm512_or_si512 emulated::Or
#define _mm512_permutexvar_epi32 emulated::PermutexvarEpi32
#define _mm512_set1_epi16 emulated::Set1<int16_t>
#define _mm512_set1_epi32 emulated::Set1<int32_t>
#define _mm512_set1_epi8 emulated::Set1<int8_t>
#define _mm512_set1_ps emulated::Set1Ps
#define _mm512_setzero_ps() emulated::Set1Ps(0)
#define _mm512_setzero_si512() emulated::Set1<int32_t>(0)
#define _mm512_shuffle_epi8 emulated::ShuffleEpi8
#define _mm512_shuffle_f32x4 emulated::ShuffleF32x4
#define _mm512_shuffle_ps emulated::ShufflePs
#define _mm512_slli_epi16 emulated::ShiftLeft<uint16_t>
#define _mm512_slli_epi32 emulated::ShiftLeft<uint32_t>
#define _mm512_srli_epi16 emulated::ShiftRight<uint16_t>
#define _mm512_srli_epi32 emulated::ShiftRight<uint32_t>
#define _mm512_storeu_ps emulated::Store
#define _mm512_storeu_si512 emulated::Store
#define _mm512_sub_ps emulated::SubPs
#define _mm512_xor_si512 emulated::Xor
