// Sixteen f32 lanes in plain C++, for processors without AVX2. See vec16_avx512.h for what the functions
// promise. Without an FMA instruction a multiply-add rounds twice, so results differ in the last bits from
// the other two.
#pragma once

#include <array>
#include <cstddef>

#include "kernels/scalar_convert.h"
#include "kernels/simd/pair_places.h"

namespace terrace {
namespace {

constexpr size_t kGemmStrips = 1, kGemmIntTokens = 1, kGemmFloatTokens = 1;
constexpr size_t kQueryBlock = 2, kKeyBlock = 1, kDimBlock = 1;
// So many tokens are few (MultiplyStrips).
constexpr size_t kGemmFewIntTokens = 0, kGemmFewFloatTokens = 0;
// How far ahead memory is asked for, in bytes: of the weights for one token (the processor's own prefetching
// stops at the end of each 4 KiB), and of keys and values.
constexpr size_t kGemmAhead = 1024, kAttentionAhead = 2048;

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
inline Vec16 LoadBF16(const std::byte* from) {
  return EachLane([&](size_t i) { return FloatFromBF16(LoadUnaligned<uint16_t>(from + 2 * i)); });
}
inline Vec16 LoadI8(const std::byte* from) {
  return EachLane([&](size_t i) { return static_cast<float>(LoadUnaligned<int8_t>(from + i)); });
}
constexpr auto kFloatsOfE4M3 = [] {
  std::array<float, 256> floats{};
  for (size_t code = 0; code < 256; ++code) floats[code] = FloatFromE4M3(static_cast<uint8_t>(code));
  return floats;
}();
inline Vec16 LoadE4M3(const std::byte* from) {
  return EachLane([&](size_t i) { return kFloatsOfE4M3[std::to_integer<uint8_t>(from[i])]; });
}

inline Vec16 LoadU8(const std::byte* from) {
  return EachLane([&](size_t i) { return static_cast<float>(std::to_integer<uint8_t>(from[i])); });
}

struct Sums16 {
  int32_t v[16];
};
struct Bytes64 {
  uint8_t v[64];
};
template <typename Function>
inline Sums16 EachSum(Function function) {
  Sums16 out;
  for (size_t i = 0; i < 16; ++i) out.v[i] = function(i);
  return out;
}
template <typename Function>
inline Bytes64 EachByte(Function function) {
  Bytes64 out;
  for (size_t i = 0; i < 64; ++i) out.v[i] = static_cast<uint8_t>(function(i));
  return out;
}
inline Sums16 ZeroSums() {
  return EachSum([](size_t) { return 0; });
}
template <int kShift>
inline Sums16 ShiftedSplat(const int32_t* from) {
  return EachSum([&](size_t) { return *from * (1 << kShift); });
}
inline Vec16 ToFloats(const Sums16& a) {
  return EachLane([&](size_t i) { return static_cast<float>(a.v[i]); });
}
inline Vec16 SplatToFloats(const int32_t* from) { return Splat(static_cast<float>(*from)); }
inline void StoreSums(int32_t* to, const Sums16& a) {
  for (size_t i = 0; i < 16; ++i) to[i] = a.v[i];
}
inline Bytes64 LoadBytes(const std::byte* from) { return LoadUnaligned<Bytes64>(from); }
inline Bytes64 SplatFour(const void* from) {
  const auto* bytes = static_cast<const uint8_t*>(from);
  return EachByte([&](size_t i) { return bytes[i % 4]; });
}
inline Vec16 AsFloats(const Bytes64& a) { return std::bit_cast<Vec16>(a); }
inline void KeepInRegister(Bytes64&) {}
inline void Prefetch(const std::byte* from) { __builtin_prefetch(from); }
inline Bytes64 LowNibbles(const Bytes64& a) {
  return EachByte([&](size_t i) { return a.v[i] & 0x0f; });
}
inline Bytes64 HighNibbles(const Bytes64& a) {
  return EachByte([&](size_t i) { return a.v[i] >> 4; });
}
template <char kMask>
inline Bytes64 AddBits(const Bytes64& codes, const Bytes64& bits, int shift) {
  return EachByte([&](size_t i) {  // eight bits above the byte make room for shifts either way
    return codes.v[i] | ((bits.v[i] << 8 >> (8 - shift)) & kMask);
  });
}
inline void StoreBytes(std::byte* to, const Bytes64& a) { __builtin_memcpy(to, a.v, sizeof(a.v)); }
inline Bytes64 Spread(const Bytes64& kept, const Bytes64& places, const std::array<uint32_t, 16>& by_place) {
  return EachByte([&](size_t i) {
    const uint32_t control = by_place[places.v[i / 4 * 4] & 7] >> (8 * (i % 4));
    return (control & 0x80) != 0 ? 0 : kept.v[i / 4 * 4 + (control & 3)];
  });
}
inline Bytes64 FlipSigns(const Bytes64& a) {
  return EachByte([&](size_t i) { return a.v[i] ^ 0x80; });
}
inline Bytes64 NextPlaces(const Bytes64& places) {
  auto lanes = std::bit_cast<std::array<uint32_t, 16>>(places);
  for (uint32_t& lane : lanes) lane >>= 3;
  return std::bit_cast<Bytes64>(lanes);
}
inline Sums16 SumFours(const Bytes64& a) {
  return EachSum([&](size_t i) {
    int32_t sum = 0;
    for (size_t j = 4 * i; j < 4 * i + 4; ++j) sum += static_cast<int8_t>(a.v[j]);
    return sum;
  });
}

constexpr bool kHasBF16Dots = true;
template <int kBits, bool kAlone>
class Dots {
 public:
  using Codes = Bytes64;
  using Values = Bytes64;
  static const Codes& Prepare(const Bytes64& codes) { return codes; }
  static Values Splat(const int8_t* values) { return SplatFour(values); }
  void Begin(const Sums16& bias) { sums_ = bias; }
  void Add(size_t, const Bytes64& codes, const Values& values) {
    for (size_t i = 0; i < 64; ++i) sums_.v[i / 4] += codes.v[i] * static_cast<int8_t>(values.v[i]);
  }
  Sums16 End(const Sums16&) const { return sums_; }

 private:
  Sums16 sums_;
};

using BF16Pair = Bytes64;
inline BF16Pair SplatPair(const uint16_t* pair) { return SplatFour(pair); }
inline Vec16 DotBF16(const Vec16& sums, const Bytes64& a, const Bytes64& b) {
  const auto at = [](const Bytes64& x, size_t byte) {
    return std::bit_cast<float>(uint32_t{x.v[byte + 1]} << 24 | uint32_t{x.v[byte]} << 16);
  };
  return EachLane([&](size_t i) {
    const float odd = at(a, 4 * i + 2) * at(b, 4 * i + 2) + sums.v[i];
    return at(a, 4 * i) * at(b, 4 * i) + odd;
  });
}

inline Vec16 Abs(const Vec16& a) {
  return EachLane([&](size_t i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; });
}
inline void StoreF16(uint16_t* to, const Vec16& a) {
  for (size_t i = 0; i < 16; ++i) to[i] = F16FromFloat(a.v[i]);
}
inline void StoreBF16(uint16_t* to, const Vec16& a) {
  for (size_t i = 0; i < 16; ++i) to[i] = BF16FromFloat(a.v[i]);
}
inline void StoreI8(int8_t* to, const Vec16& a) {
  for (size_t i = 0; i < 16; ++i) {  // adding it leaves the nearest integer in the lowest mantissa bits
    to[i] = static_cast<int8_t>(std::bit_cast<uint32_t>(a.v[i] + 0x1.8p23f));
  }
}

inline float First(const Vec16& a) { return a.v[0]; }
inline float Sum(Vec16 a) {
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}
// Sums of sixteen vectors, each Sum() to the bit, in two steps that each halve what is left: quarter q of
// FoldFour has four partial sums of vector q, and lane 4 q + i of SumFolds the sum of quarter q of fold i.
inline Vec16 FoldFour(Vec16 a, Vec16 b, Vec16 c, Vec16 d) {
  return EachLane([&](size_t i) {
    const float* x = (i < 4 ? a : i < 8 ? b : i < 12 ? c : d).v;
    return (x[i % 4] + x[i % 4 + 8]) + (x[i % 4 + 4] + x[i % 4 + 12]);
  });
}
inline Vec16 SumFolds(Vec16 a, Vec16 b, Vec16 c, Vec16 d) {
  return EachLane([&](size_t i) {
    const float* x = (i % 4 == 0 ? a : i % 4 == 1 ? b : i % 4 == 2 ? c : d).v + i / 4 * 4;
    return (x[0] + x[2]) + (x[1] + x[3]);
  });
}
inline float Largest(Vec16 a) {
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  }
  return a.v[0];
}

}  // namespace
}  // namespace terrace
