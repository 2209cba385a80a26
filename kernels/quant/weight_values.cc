#include "kernels/quant/weight_values.h"

#include "kernels/quant/weight_codes.h"

namespace terrace {
namespace {

// Elements [first, end) of a row of floats, or of kInt8.
void DecodePlain(const WeightMatrix& matrix, size_t row, size_t first, size_t end, float* out) {
  const std::byte* data = matrix.Row(row);
  switch (matrix.dtype) {
    case DType::kF32:
      for (size_t i = first; i < end; ++i) *out++ = LoadUnaligned<float>(data + 4 * i);
      return;
    case DType::kF16:
      for (size_t i = first; i < end; ++i) *out++ = FloatFromF16(LoadUnaligned<uint16_t>(data + 2 * i));
      return;
    case DType::kBF16:
      for (size_t i = first; i < end; ++i) *out++ = FloatFromBF16(LoadUnaligned<uint16_t>(data + 2 * i));
      return;
    case DType::kInt8: {
      const float scale = matrix.row_scales[row];
      for (size_t i = first; i < end; ++i) *out++ = scale * LoadUnaligned<int8_t>(data + i);
      return;
    }
    default:
      return;
  }
}

// The 32 elements from `first` on of a row of blocks.
template <typename Blocks>
void DecodePart(const WeightMatrix& matrix, size_t row, size_t first, float (&out)[kCodes]) {
  const std::byte* block = matrix.Row(row) + first / Blocks::kElements * Info(matrix.dtype).block_bytes;
  const size_t in_block = first % Blocks::kElements;
  uint8_t codes[kCodes];
  Blocks::Codes(block, in_block / kCodes, codes);
  for (size_t i = 0; i < kCodes; ++i) {
    const size_t shared = (in_block + i) / Blocks::kShared;
    const auto code = static_cast<float>(codes[i] - Blocks::kBias);
    out[i] = Blocks::Scale(block, shared) * code - Blocks::Minimum(block, shared);
  }
}

}  // namespace

float WeightAt(const WeightMatrix& matrix, size_t row, size_t column) {
  float value = 0;
  DecodePlain(matrix, row, column, column + 1, &value);
  WithBlocks(matrix.dtype, [&](auto blocks) {
    float part[kCodes];
    DecodePart<decltype(blocks)>(matrix, row, column / kCodes * kCodes, part);
    value = part[column % kCodes];
  });
  return value;
}

void DecodeRow(const WeightMatrix& matrix, size_t row, float* out) {
  DecodePlain(matrix, row, 0, matrix.columns, out);
  WithBlocks(matrix.dtype, [&](auto blocks) {
    for (size_t first = 0; first < matrix.columns; first += kCodes) {
      float part[kCodes];
      DecodePart<decltype(blocks)>(matrix, row, first, part);
      std::memcpy(out + first, part, sizeof(part));
    }
  });
}

}  // namespace terrace
