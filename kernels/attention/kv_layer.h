// The keys and values of one layer, as the kernels see them. A row is the head_dim elements of one position
// and one key-value head; rows lie [kv_heads, blocks, block_tokens], so that blocks of a sequence that are
// neighbours are one stream of memory to each head.
//
// What is written is rounded once, to nearest, ties to even, the same on every backend:
//   f32   as it is
//   f16   |x| up to 65504;  error at most 2^-11 |x| (2^-25 below 2^-14)
//   bf16  error at most 2^-8 |x|
//   int8  scale * n: scale = max |x| / 127 of the row, n = x / scale rounded, so n is in [-127, 127];
//         error at most scale / 2. A row whose max |x| is below kSmallestInt8Row is all zeros, scale 0
//   fp8   E4M3 (scalar_convert.h), |x| up to 464, of which the largest are 448; error at most 2^-4 |x| (2^-10
//         below 2^-6). No scale: it would have to be read and multiplied by, and one of a power of two to a
//         row left the demo models as far from f32 as none did, for most of the error is relative to x
// A value that f16, bf16 or fp8 cannot hold (an infinity, a NaN, or too large) is read back as NaN, and so is
// a whole int8 row that holds an infinity or a NaN: the answer fails visibly instead of being silently wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace terrace {

enum class KvDType : uint8_t { kF32, kF16, kBF16, kInt8, kFp8 };

inline constexpr KvDType kEveryKvDType[] = {KvDType::kF32, KvDType::kF16, KvDType::kBF16, KvDType::kInt8,
                                            KvDType::kFp8};
// Of pools on a GPU.
inline constexpr KvDType kEveryGpuKvDType[] = {KvDType::kBF16, KvDType::kF16, KvDType::kInt8, KvDType::kFp8};

// 127 times the smallest normal f32: below it a scale would lose bits.
inline constexpr float kSmallestInt8Row = 127 * 0x1p-126f;

constexpr std::string_view KvDTypeName(KvDType dtype) {
  switch (dtype) {
    case KvDType::kF32:
      return "f32";
    case KvDType::kF16:
      return "f16";
    case KvDType::kBF16:
      return "bf16";
    case KvDType::kInt8:
      return "int8";
    case KvDType::kFp8:
      return "fp8";
  }
  return "?";
}

constexpr size_t KvElementBytes(KvDType dtype) {
  switch (dtype) {
    case KvDType::kF32:
      return 4;
    case KvDType::kF16:
    case KvDType::kBF16:
      return 2;
    case KvDType::kInt8:
    case KvDType::kFp8:
      return 1;
  }
  return 0;
}

constexpr bool HasScales(KvDType dtype) { return dtype == KvDType::kInt8; }

// Borrowed memory of the rows.
struct KvRows {
  std::byte* data = nullptr;  // [rows, head_dim] elements
  float* scales = nullptr;    // [rows], of int8
};

struct KvLayer {
  KvDType dtype = KvDType::kF32;
  KvRows keys, values;
};

}  // namespace terrace
