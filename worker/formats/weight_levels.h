// What quantized formats have in common, for those who choose levels and codes themselves: a run of elements
// shares a level, whose code c stands for scale * (c - zero) - minimum, and a block stores its levels in a
// head. kernels/quant/weight_codes.h is the definition of the formats. Pure; the same bits on every machine.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/dtype.h"

namespace terrace {

struct WeightLevel {
  float scale = 0, minimum = 0;
  int zero = 0;

  float ValueOf(int code) const { return scale * static_cast<float>(code - zero) - minimum; }
};

enum class LevelKind : uint8_t {
  kSymmetric,  // a scale
  kMinimum,    // a scale and a minimum (Q4_K)
  kZeroPoint,  // a scale and a code for zero (INT4)
};

struct CodeFormat {
  LevelKind kind = LevelKind::kSymmetric;
  size_t shared = 0;        // elements that share a level; 0: those of a row (INT8)
  int least = 0, most = 0;  // codes
  int zero = 0;             // of symmetric formats
};

// Of every quantized format; floats have none.
CodeFormat CodeFormatOf(DType dtype);

inline constexpr size_t kMostLevels = 16, kMostBlockElements = 256;  // of a block

// What a block stores beside its codes; a format has some of these. INT8 has no head: its scale is f32 and
// lies apart.
struct BlockHead {
  uint16_t scale = 0, minimum = 0;          // f16
  uint8_t zero_point = 0;                   // INT4
  std::array<uint8_t, 16> sub_scales = {};  // Q4_K: 8 numbers of 6 bits; Q6_K: 16 of int8
  std::array<uint8_t, 8> sub_minima = {};   // Q4_K: of 6 bits
};

// The level that reaches the least and the largest of the values that share it: of symmetric formats the
// largest magnitude becomes the lowest level exactly (Q8_0, INT8: the highest or the lowest), else the codes
// span the least and the largest value, and 0.
WeightLevel PlainLevel(DType dtype, std::span<const float> values);

// The head whose levels are nearest to `levels`, those of one block; and the levels that a head stores. Not
// for INT8.
BlockHead HeadOf(DType dtype, std::span<const WeightLevel> levels);
void LevelsOf(DType dtype, const BlockHead& head, std::span<WeightLevel> levels);

// The code of the level nearest to `value`, halves away from zero.
int CodeOf(const WeightLevel& level, const CodeFormat& format, float value);

// A whole block into the bytes that it takes. Not for INT8.
void PutBlock(DType dtype, const BlockHead& head, std::span<const uint8_t> codes, std::byte* out);

}  // namespace terrace
