// A group of lanes rotates or copies one head of one token: a lane has two pieces of 8 elements (16 bytes),
// from the first and from the second half of the head. With halves they are 8 pairs; with neighbours each
// holds 4.
//
// Every operation is written with its roundings: real = fma(first, cos, -(second * sin)) and
// imaginary = fma(second, cos, first * sin), in f32 from bf16, are the values that are rounded once more to
// what is stored, as kv_layer.h says, to the bit of WriteKv. So are those of a norm (HeadAdjustment).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/quant/e4m3_device.h"
#include "kernels/rope/rope_kv_gpu.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr uint32_t kRopeThreads = 384;  // at most; the heads of a token of an 8B model: (32 + 16) * 8
inline constexpr uint32_t kRopeMostHeadDim = 256;

struct RopePiece {
  float x[8];
};

TERRACE_DEVICE RopePiece UnpackBF16(const uint4& w) {
  return {{simt::BF16Low(w.x), simt::BF16High(w.x), simt::BF16Low(w.y), simt::BF16High(w.y),  //
           simt::BF16Low(w.z), simt::BF16High(w.z), simt::BF16Low(w.w), simt::BF16High(w.w)}};
}
TERRACE_DEVICE uint4 PackPieceBF16(const RopePiece& p) {
  return {simt::PackBF16(p.x[0], p.x[1]), simt::PackBF16(p.x[2], p.x[3]), simt::PackBF16(p.x[4], p.x[5]),
          simt::PackBF16(p.x[6], p.x[7])};
}

TERRACE_DEVICE void RotatePair(float& first, float& second, float cos, float sin) {
  const float real = fmaf(first, cos, -(second * sin)), imaginary = fmaf(second, cos, first * sin);
  first = real;
  second = imaginary;
}

template <bool kNeighbours>
TERRACE_DEVICE void RotatePieces(RopePiece& low, RopePiece& high, const float4 (&c)[2],
                                 const float4 (&s)[2]) {
  const float cos[8] = {c[0].x, c[0].y, c[0].z, c[0].w, c[1].x, c[1].y, c[1].z, c[1].w};
  const float sin[8] = {s[0].x, s[0].y, s[0].z, s[0].w, s[1].x, s[1].y, s[1].z, s[1].w};
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 8; ++i) {
    if constexpr (kNeighbours) {
      RopePiece& piece = i < 4 ? low : high;
      RotatePair(piece.x[2 * (i % 4)], piece.x[2 * (i % 4) + 1], cos[i], sin[i]);
    } else {
      RotatePair(low.x[i], high.x[i], cos[i], sin[i]);
    }
  }
}

// What is done to a lane's two pieces of a head before they are rotated: x + bias, then x * r * norm with
// r = 1 / sqrt(mean(x^2) + epsilon).
struct HeadAdjustment {
  const GpuHeadAdjustments& all;
  uint4 low_bias = {}, high_bias = {};
  float4 norm[4] = {};  // of the low piece, then of the high one
  bool is_normalized = false;

  // Of the lane whose pieces begin at `first` and first + half of head `head`, which exists.
  TERRACE_DEVICE void Load(const GpuRopeKvArgs& a, uint32_t head, uint32_t first, uint32_t half) {
    if (all.bias != nullptr) {
      const uint16_t* const bias = all.bias + head * (2 * half) + first;
      low_bias = simt::LoadReadOnly(reinterpret_cast<const uint4*>(bias));
      high_bias = simt::LoadReadOnly(reinterpret_cast<const uint4*>(bias + half));
    }
    const float* of_head = nullptr;
    if (head < a.heads) {
      of_head = all.q_norm;
    } else if (head < a.heads + a.batch.kv_heads) {
      of_head = all.k_norm;
    }
    is_normalized = of_head != nullptr;
    if (!is_normalized) return;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      const float* const from = of_head + first + (i < 2 ? 0 : half) + 4 * (i % 2);
      norm[i] = simt::LoadReadOnly(reinterpret_cast<const float4*>(from));
    }
  }

  // Every lane of the warp calls it; those that loaded nothing have zeros.
  TERRACE_DEVICE void Apply(RopePiece& low, RopePiece& high, uint32_t group, uint32_t head_dim) const {
    if (all.bias != nullptr) {
      const RopePiece low_sum = UnpackBF16(low_bias), high_sum = UnpackBF16(high_bias);
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 8; ++i) {
        low.x[i] += low_sum.x[i];
        high.x[i] += high_sum.x[i];
      }
    }
    if (all.q_norm == nullptr && all.k_norm == nullptr) return;
    float squares = 0;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 8; ++i) squares = fmaf(low.x[i], low.x[i], squares);
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 8; ++i) squares = fmaf(high.x[i], high.x[i], squares);
    for (uint32_t mask = group / 2; mask > 0; mask /= 2) squares += simt::ShuffleXor(squares, mask);
    if (!is_normalized) return;
    // Where squares overflow all outputs would silently be 0.
    const float mean = squares / static_cast<float>(head_dim);
    const float r = squares < INFINITY ? 1 / sqrtf(mean + all.norm_epsilon) : NAN;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      float* const x = (i < 2 ? low : high).x + 4 * (i % 2);
      x[0] = x[0] * r * norm[i].x;
      x[1] = x[1] * r * norm[i].y;
      x[2] = x[2] * r * norm[i].z;
      x[3] = x[3] * r * norm[i].w;
    }
  }
};

struct NoHeadAdjustment {
  TERRACE_DEVICE void Load(const GpuRopeKvArgs&, uint32_t, uint32_t, uint32_t) {}
  TERRACE_DEVICE void Apply(RopePiece&, RopePiece&, uint32_t, uint32_t) const {}
};

// cos or sin of the pairs of a lane's two pieces, from those of its position; with neighbours 4 of each
// piece.
template <bool kNeighbours>
TERRACE_DEVICE void LoadAngles(const float* of_position, uint32_t lane, uint32_t pairs, float4 (&to)[2]) {
  const uint32_t first = kNeighbours ? 4 * lane : 8 * lane;
  const uint32_t second = kNeighbours ? pairs / 2 + 4 * lane : first + 4;
  to[0] = simt::LoadReadOnly(reinterpret_cast<const float4*>(of_position + first));
  to[1] = simt::LoadReadOnly(reinterpret_cast<const float4*>(of_position + second));
}

// Each 16-bit half whose exponent has all its bits, `exponent`, as `nan`.
TERRACE_DEVICE uint32_t NaNUnlessFinite(uint32_t w, uint32_t exponent, uint32_t nan) {
  if ((w & exponent) == exponent) w = (w & 0xffff0000) | nan;
  if ((w & exponent << 16) == exponent << 16) w = (w & 0xffff) | nan << 16;
  return w;
}

template <KvDType kDType>
TERRACE_DEVICE uint4 PackRow16(const RopePiece& p) {
  const auto pack = [&p](uint32_t i) {
    return kDType == KvDType::kBF16 ? NaNUnlessFinite(simt::PackBF16(p.x[i], p.x[i + 1]), 0x7f80, 0x7fc0)
                                    : NaNUnlessFinite(simt::PackF16(p.x[i], p.x[i + 1]), 0x7c00, 0x7e00);
  };
  return {pack(0), pack(2), pack(4), pack(6)};
}

TERRACE_DEVICE uint2 PackRowFp8(const RopePiece& p) {
  return {PackE4M3OrNaN(p.x[0], p.x[1], p.x[2], p.x[3]), PackE4M3OrNaN(p.x[4], p.x[5], p.x[6], p.x[7])};
}

// The codes of a row: v / scale to the nearest integer.
class Int8Row {
 public:
  TERRACE_DEVICE explicit Int8Row(float scale)
      : widen_(scale < 1 ? 0x1p64f : 1), scale_(scale * widen_), reciprocal_(scale > 0 ? 1 / scale_ : 0) {}

  TERRACE_DEVICE uint2 Codes(const RopePiece& p) const {
    if (!(reciprocal_ > 0)) return {0, 0};  // of a scale of 0 or NaN
    return {Four(p.x[0], p.x[1], p.x[2], p.x[3]), Four(p.x[4], p.x[5], p.x[6], p.x[7])};
  }

 private:
  // v / scale rounded as a division rounds it (Markstein, "Computation of elementary functions on the IBM
  // RISC System/6000 processor", 1990: the first step is within an ulp, the second is exact), without its
  // special cases: |v| <= 127 scale, and times 2^64 no remainder that matters is subnormal. Adding 1.5 * 2^23
  // rounds to an integer, ties to even, that is then the lowest byte.
  TERRACE_DEVICE uint32_t Code(float v) const {
    v *= widen_;
    float quotient = v * reciprocal_;
    quotient = fmaf(fmaf(-quotient, scale_, v), reciprocal_, quotient);
    quotient = fmaf(fmaf(-quotient, scale_, v), reciprocal_, quotient);
    return simt::BitsOfFloat(quotient + 0x1.8p23f);
  }
  TERRACE_DEVICE uint32_t Four(float v0, float v1, float v2, float v3) const {
    return simt::BytePermute(simt::BytePermute(Code(v0), Code(v1), 0x0040),
                             simt::BytePermute(Code(v2), Code(v3), 0x0040), 0x5410);
  }

  float widen_, scale_, reciprocal_;
};

// Of an int8 row. As integers, magnitudes of floats rise as they do, infinities and NaN above them. Every
// lane of the warp calls it.
TERRACE_DEVICE float Int8Scale(const RopePiece& low, const RopePiece& high, uint32_t group) {
  uint32_t largest = 0;
  const auto take = [&largest](uint32_t bits) {
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  };
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 8; ++i) {
    take(simt::BitsOfFloat(low.x[i]));
    take(simt::BitsOfFloat(high.x[i]));
  }
  for (uint32_t mask = group / 2; mask > 0; mask /= 2) take(simt::ShuffleXor(largest, mask));
  if (largest >= 0x7f800000) return simt::FloatOfBits(0x7fc00000);  // NaN
  const float value = simt::FloatOfBits(largest);
  return value < kSmallestInt8Row ? 0 : value / 127;
}

// Of an element. (A kernel may not call what is a function of the host.)
template <KvDType kDType>
inline constexpr uint32_t kKvBytes = KvElementBytes(kDType);

// A lane's pieces of a key or value as the pool's rows hold them.
template <KvDType kDType>
struct KvPieces {
  static constexpr uint32_t kBytes = kKvBytes<kDType>;
  using Piece = std::conditional_t<kBytes == 1, uint2, uint4>;
  Piece low, high;

  TERRACE_DEVICE static KvPieces Of(const RopePiece& low, const RopePiece& high, float scale) {
    if constexpr (kDType == KvDType::kInt8) {
      const Int8Row coder(scale);
      return {coder.Codes(low), coder.Codes(high)};
    } else if constexpr (kDType == KvDType::kFp8) {
      return {PackRowFp8(low), PackRowFp8(high)};
    } else {
      return {PackRow16<kDType>(low), PackRow16<kDType>(high)};
    }
  }
  // To a row of 2 * half elements.
  TERRACE_DEVICE void Store(std::byte* row, uint32_t half, uint32_t lane) const {
    *reinterpret_cast<Piece*>(row + 8 * lane * kBytes) = low;
    *reinterpret_cast<Piece*>(row + (half + 8 * lane) * kBytes) = high;
  }
};

// Grid: [tokens, parts of its heads]; groups of 2^log2_group lanes, at least head_dim / 16. Adjustments:
// none, or one GpuHeadAdjustments, an argument of its own: a larger GpuRopeKvArgs costs those without it
// registers.
template <KvDType kDType, bool kNeighbours, typename... Adjustments>
TERRACE_KERNEL void TERRACE_BOUNDS(kRopeThreads, 2)
    RopeKvKernel(GpuRopeKvArgs a, uint32_t log2_group, Adjustments... adjustments) {
  constexpr bool kAdjusts = sizeof...(Adjustments) > 0;
  simt::LetNextStart();
  const uint32_t token = blockIdx.x, slot = blockIdx.y * blockDim.x + threadIdx.x;
  const uint32_t head = slot >> log2_group, lane = slot & ((1u << log2_group) - 1);
  const uint32_t kv_heads = a.batch.kv_heads, heads = a.heads + 2 * kv_heads;
  const uint32_t half = a.batch.head_dim / 2, pairs = half;
  const bool is_mine = head < heads && lane < half / 8, is_stored = is_mine && head >= a.heads;
  const bool is_rotated = is_mine && head < a.heads + kv_heads;
  uint16_t* const elements =
      a.qkv + (uint64_t{token} * heads + (is_mine ? head : 0)) * (2 * half) + (is_mine ? 8 * lane : 0);
  auto* const low_piece = reinterpret_cast<uint4*>(elements);
  auto* const high_piece = reinterpret_cast<uint4*>(elements + half);
  std::conditional_t<kAdjusts, HeadAdjustment, NoHeadAdjustment> adjustment{adjustments...};
  if (is_mine) adjustment.Load(a, head, 8 * lane, half);
  simt::WaitForPrevious();

  // All that is loaded is asked for before the first of it is used.
  const uint32_t position = a.batch.positions[token], sequence = a.batch.sequences[token];
  uint4 low_bits = {}, high_bits = {};
  if (is_mine) {
    low_bits = *low_piece;
    high_bits = *high_piece;
  }
  float4 cos[2] = {}, sin[2] = {};
  if (is_rotated) {
    const uint64_t row_of_tables = uint64_t{position} * pairs;
    LoadAngles<kNeighbours>(a.cos + row_of_tables, lane, pairs, cos);
    LoadAngles<kNeighbours>(a.sin + row_of_tables, lane, pairs, sin);
  }
  uint64_t row = 0;
  if (is_stored) row = KvRow(a.batch, sequence, head - a.heads - (is_rotated ? 0 : kv_heads), position);

  RopePiece low = UnpackBF16(low_bits), high = UnpackBF16(high_bits);
  adjustment.Apply(low, high, 1u << log2_group, 2 * half);
  if (is_rotated) RotatePieces<kNeighbours>(low, high, cos, sin);
  float scale = 0;
  if constexpr (kDType == KvDType::kInt8) scale = Int8Scale(low, high, 1u << log2_group);
  if (!is_mine) return;
  if (!is_stored) {
    *low_piece = PackPieceBF16(low);
    *high_piece = PackPieceBF16(high);
    return;
  }
  using Pieces = KvPieces<kDType>;
  std::byte* const rows = is_rotated ? a.kv.keys.data : a.kv.values.data;
  Pieces::Of(low, high, scale).Store(rows + row * (2 * half) * Pieces::kBytes, half, lane);
  if (kDType == KvDType::kInt8 && lane == 0) {
    (is_rotated ? a.kv.keys.scales : a.kv.values.scales)[row] = scale;
  }
}

// Of the host: calls launch(blocks of a token, threads of a block, kernel, the kernel's arguments...) for
// `args`, whose KvDType is not f32.
template <KvDType kDType, typename Launch>
auto LaunchRopeKvAs(const GpuRopeKvArgs& args, const GpuHeadAdjustments& adjustments, const Launch& launch) {
  uint32_t log2_group = 0;
  while ((16u << log2_group) < args.batch.head_dim) ++log2_group;
  const uint32_t lanes = (args.heads + 2 * args.batch.kv_heads) << log2_group;
  const uint32_t blocks = (lanes + kRopeThreads - 1) / kRopeThreads;
  const uint32_t threads = ((lanes + blocks - 1) / blocks + simt::kWarp - 1) / simt::kWarp * simt::kWarp;
  const auto launch_with = [&](const auto&... its) {
    return args.neighbours
               ? launch(blocks, threads, RopeKvKernel<kDType, true, std::decay_t<decltype(its)>...>, args,
                        log2_group, its...)
               : launch(blocks, threads, RopeKvKernel<kDType, false, std::decay_t<decltype(its)>...>, args,
                        log2_group, its...);
  };
  return adjustments.empty() ? launch_with() : launch_with(adjustments);
}
template <typename Launch>
auto LaunchRopeKv(const GpuRopeKvArgs& args, const GpuHeadAdjustments& adjustments, const Launch& launch) {
  switch (args.kv.dtype) {
    case KvDType::kF16:
      return LaunchRopeKvAs<KvDType::kF16>(args, adjustments, launch);
    case KvDType::kInt8:
      return LaunchRopeKvAs<KvDType::kInt8>(args, adjustments, launch);
    case KvDType::kFp8:
      return LaunchRopeKvAs<KvDType::kFp8>(args, adjustments, launch);
    case KvDType::kF32:
    case KvDType::kBF16:
      break;
  }
  return LaunchRopeKvAs<KvDType::kBF16>(args, adjustments, launch);
}

}  // namespace terrace
