// The blocks of quantized weights, as files hold them: unsigned codes and what turns them into values.
//   value = scale * (code - kBias)           or, with a minimum,
//   value = scale * code - minimum
// Scales are products of the stored numbers; all of these, and scale * code, are exact in f32, so a value has
// at most the one rounding of the subtraction and equals GGML's dequantize_row_* to the bit.
//
// Layouts: GGML's block_q8_0, block_q4_0, block_q5_0, block_q4_K and block_q6_K (ggml-common.h);
// weight_values_test compares with what the gguf Python package makes of them.
#pragma once

#include "kernels/scalar_convert.h"
#include "kernels/weight_matrix.h"

namespace terrace {

inline constexpr size_t kCodes = 32;  // are read at a time

inline uint8_t ByteAt(const std::byte* from) { return std::to_integer<uint8_t>(*from); }

// Of each: Codes(block, part, codes) reads the codes of elements [32 part, 32 part + 32) of a block, and
// Scale(block, i) is that of elements [kShared i, kShared (i + 1)). Minimum(block, i) likewise.
struct Q8_0Blocks {
  static constexpr size_t kElements = 32, kShared = 32;
  static constexpr int kBias = 128;
  static uint16_t ScaleBits(const std::byte* block) { return LoadUnaligned<uint16_t>(block); }
  static float Scale(const std::byte* block, size_t) { return FloatFromF16(ScaleBits(block)); }
  static float Minimum(const std::byte*, size_t) { return 0; }
  static void Codes(const std::byte* block, size_t, uint8_t (&codes)[kCodes]) {
    for (size_t i = 0; i < kCodes; ++i) codes[i] = ByteAt(block + 2 + i) ^ 0x80;
  }
};

struct Q4_0Blocks {
  static constexpr size_t kElements = 32, kShared = 32;
  static constexpr int kBias = 8;
  static uint16_t ScaleBits(const std::byte* block) { return LoadUnaligned<uint16_t>(block); }
  static float Scale(const std::byte* block, size_t) { return FloatFromF16(ScaleBits(block)); }
  static float Minimum(const std::byte*, size_t) { return 0; }
  static void Codes(const std::byte* block, size_t, uint8_t (&codes)[kCodes]) {
    for (size_t i = 0; i < 16; ++i) {
      codes[i] = ByteAt(block + 2 + i) & 0x0f;
      codes[i + 16] = ByteAt(block + 2 + i) >> 4;
    }
  }
};

struct Q5_0Blocks {
  static constexpr size_t kElements = 32, kShared = 32;
  static constexpr int kBias = 16;
  static uint16_t ScaleBits(const std::byte* block) { return LoadUnaligned<uint16_t>(block); }
  static float Scale(const std::byte* block, size_t) { return FloatFromF16(ScaleBits(block)); }
  static float Minimum(const std::byte*, size_t) { return 0; }
  static void Codes(const std::byte* block, size_t, uint8_t (&codes)[kCodes]) {
    const auto high = LoadUnaligned<uint32_t>(block + 2);
    for (size_t i = 0; i < 16; ++i) {
      codes[i] = static_cast<uint8_t>((ByteAt(block + 6 + i) & 0x0f) | (high >> i & 1) << 4);
      codes[i + 16] = static_cast<uint8_t>(ByteAt(block + 6 + i) >> 4 | (high >> (i + 16) & 1) << 4);
    }
  }
};

struct Q4_KBlocks {
  static constexpr size_t kElements = 256, kShared = 32;
  static constexpr int kBias = 0;
  static uint16_t ScaleBits(const std::byte* block) { return LoadUnaligned<uint16_t>(block); }
  static uint16_t MinimumBits(const std::byte* block) { return LoadUnaligned<uint16_t>(block + 2); }
  // Twelve bytes hold sixteen 6-bit numbers: the first four pairs in the lower 6 bits of bytes 0 to 7; the
  // others' lower 4 bits in bytes 8 to 11, their upper 2 in the upper bits of bytes 0 to 7.
  static uint8_t SubScale(const std::byte* block, size_t i) {
    const std::byte* packed = block + 4;
    if (i < 4) return ByteAt(packed + i) & 63;
    return static_cast<uint8_t>((ByteAt(packed + i + 4) & 0x0f) | ByteAt(packed + i - 4) >> 6 << 4);
  }
  static uint8_t SubMinimum(const std::byte* block, size_t i) {
    const std::byte* packed = block + 4;
    if (i < 4) return ByteAt(packed + i + 4) & 63;
    return static_cast<uint8_t>(ByteAt(packed + i + 4) >> 4 | ByteAt(packed + i) >> 6 << 4);
  }
  static float Scale(const std::byte* block, size_t i) {
    return FloatFromF16(ScaleBits(block)) * SubScale(block, i);
  }
  static float Minimum(const std::byte* block, size_t i) {
    return FloatFromF16(MinimumBits(block)) * SubMinimum(block, i);
  }
  static void Codes(const std::byte* block, size_t part, uint8_t (&codes)[kCodes]) {
    const std::byte* from = block + 16 + 32 * (part / 2);
    const int shift = part % 2 == 0 ? 0 : 4;
    for (size_t i = 0; i < kCodes; ++i) codes[i] = static_cast<uint8_t>(ByteAt(from + i) >> shift & 0x0f);
  }
};

struct Q6_KBlocks {
  static constexpr size_t kElements = 256, kShared = 16;
  static constexpr int kBias = 32;
  static uint16_t ScaleBits(const std::byte* block) { return LoadUnaligned<uint16_t>(block + 208); }
  static int8_t SubScale(const std::byte* block, size_t i) { return LoadUnaligned<int8_t>(block + 192 + i); }
  static float Scale(const std::byte* block, size_t i) {
    return FloatFromF16(ScaleBits(block)) * SubScale(block, i);
  }
  static float Minimum(const std::byte*, size_t) { return 0; }
  // Of each 128 elements, 64 bytes hold the lower 4 bits (parts 0 and 1 in the lower nibbles) and 32 bytes
  // the upper 2 (part p at bit 2 p).
  static void Codes(const std::byte* block, size_t part, uint8_t (&codes)[kCodes]) {
    const size_t quarter = part % 4;
    const std::byte* low = block + 64 * (part / 4) + 32 * (quarter % 2);
    const std::byte* high = block + 128 + 32 * (part / 4);
    const int low_shift = quarter < 2 ? 0 : 4, high_shift = 2 * static_cast<int>(quarter);
    for (size_t i = 0; i < kCodes; ++i) {
      codes[i] = static_cast<uint8_t>((ByteAt(low + i) >> low_shift & 0x0f) |
                                      (ByteAt(high + i) >> high_shift & 3) << 4);
    }
  }
};

template <size_t kGroupElements>
struct Int4Blocks {
  static constexpr size_t kElements = kGroupElements, kShared = kGroupElements;
  static constexpr int kBias = 0;
  static uint16_t ScaleBits(const std::byte* block) { return LoadUnaligned<uint16_t>(block); }
  static uint8_t ZeroPoint(const std::byte* block) { return ByteAt(block + 2); }
  static float Scale(const std::byte* block, size_t) { return FloatFromF16(ScaleBits(block)); }
  static float Minimum(const std::byte* block, size_t i) { return Scale(block, i) * ZeroPoint(block); }
  static void Codes(const std::byte* block, size_t part, uint8_t (&codes)[kCodes]) {
    for (size_t i = 0; i < kCodes / 2; ++i) {
      const uint8_t two = ByteAt(block + 4 + 16 * part + i);
      codes[2 * i] = two & 0x0f;
      codes[2 * i + 1] = two >> 4;
    }
  }
};

// Calls use(blocks) with the struct of `dtype`; not for floats and kInt8, which have no blocks.
template <typename Use>
void WithBlocks(DType dtype, Use use) {
  switch (dtype) {
    case DType::kQ8_0:
      return use(Q8_0Blocks());
    case DType::kQ4_0:
      return use(Q4_0Blocks());
    case DType::kQ5_0:
      return use(Q5_0Blocks());
    case DType::kQ4_K:
      return use(Q4_KBlocks());
    case DType::kQ6_K:
      return use(Q6_KBlocks());
    case DType::kInt4G32:
      return use(Int4Blocks<32>());
    case DType::kInt4G128:
      return use(Int4Blocks<128>());
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kInt8:
      return;
  }
}

}  // namespace terrace
