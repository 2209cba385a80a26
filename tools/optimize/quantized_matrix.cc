#include "tools/optimize/quantized_matrix.h"

#include <utility>

#include "tools/optimize/level_search.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/weight_encoding.h"

namespace terrace {

DType WithWholeBlocks(DType dtype, uint64_t columns) {
  if (columns % Info(dtype).block_elements == 0) return dtype;
  if (dtype == DType::kQ4_K) return DType::kQ5_0;
  return dtype == DType::kQ6_K ? DType::kQ8_0 : dtype;
}

StatusOr<RowFormat> RowFormat::Create(DType dtype, uint32_t group, size_t columns) {
  const CodeFormat codes = CodeFormatOf(dtype);
  size_t block = Info(dtype).block_elements, shared = codes.shared;
  if (dtype == DType::kInt8) {
    block = shared = columns;
  } else if (codes.kind == LevelKind::kZeroPoint) {
    CHECK(group > 0 && group % block == 0, "groups of ", group, " of ", Info(dtype).name);
    block = shared = group;
  }
  if (columns % block != 0)
    return InvalidArgument("rows of ", columns, " are not whole blocks of ", block, " of ",
                           FormatName(dtype, group));
  return RowFormat(dtype, codes, columns, block, shared);
}

BlockLevels RowFormat::Choose(std::span<const float> values, std::span<const float> importance) const {
  BlockLevels chosen;
  const size_t count = block_ / shared_;
  for (size_t i = 0; i < count; ++i) {
    const auto part = values.subspan(i * shared_, shared_);
    chosen.levels[i] = importance.empty()
                           ? PlainLevel(dtype_, part)
                           : SearchLevel(dtype_, part, importance.subspan(i * shared_, shared_));
  }
  if (dtype_ == DType::kInt8) return chosen;
  chosen.head = HeadOf(dtype_, std::span(chosen.levels).first(count));
  LevelsOf(dtype_, chosen.head, std::span(chosen.levels).first(count));
  return chosen;
}

QuantizedMatrix::QuantizedMatrix(const RowFormat& format, size_t rows)
    : format_(format),
      rows_(rows),
      codes_(rows * (format.columns() / Info(format.dtype()).block_elements) *
             Info(format.dtype()).block_bytes),
      row_scales_(format.dtype() == DType::kInt8 ? rows : 0) {}

void QuantizedMatrix::Put(size_t row, size_t block, const BlockLevels& levels,
                          std::span<const uint8_t> codes) {
  const DTypeInfo& info = Info(format_.dtype());
  const size_t row_bytes = codes_.size() / rows_;
  std::byte* out =
      codes_.data() + row * row_bytes + block * format_.block() / info.block_elements * info.block_bytes;
  if (format_.dtype() == DType::kInt8) {
    for (size_t i = 0; i < codes.size(); ++i) out[i] = static_cast<std::byte>(codes[i] ^ 0x80);
    row_scales_[row] = levels.levels[0].scale;
    return;
  }
  for (size_t i = 0; i < codes.size(); i += info.block_elements, out += info.block_bytes)
    PutBlock(format_.dtype(), levels.head, codes.subspan(i, info.block_elements), out);
}

WeightMatrix QuantizedMatrix::view() const {
  return {.dtype = format_.dtype(),
          .data = codes_.data(),
          .rows = rows_,
          .columns = format_.columns(),
          .row_scales = row_scales_.empty() ? nullptr : row_scales_.data()};
}

std::vector<std::byte> QuantizedMatrix::Bytes() const {
  std::vector<std::byte> bytes = codes_;
  const auto scales = std::as_bytes(std::span(row_scales_));
  bytes.insert(bytes.end(), scales.begin(), scales.end());
  return bytes;
}

FloatMatrix QuantizedMatrix::ToFloat(ThreadPool& pool) const { return ToFloats(view(), pool); }

QuantizedMatrix RoundToNearest(const FloatMatrix& matrix, const RowFormat& format,
                               std::span<const float> importance, ThreadPool& pool) {
  QuantizedMatrix out(format, matrix.rows);
  const size_t block = format.block();
  pool.ParallelFor(matrix.rows, /*grain=*/4, [&](size_t begin, size_t end) {
    std::vector<uint8_t> codes(block);
    for (size_t row = begin; row < end; ++row) {
      for (size_t i = 0; i < format.blocks(); ++i) {
        const std::span<const float> values = matrix.Row(row).subspan(i * block, block);
        const BlockLevels levels =
            format.Choose(values, importance.empty() ? importance : importance.subspan(i * block, block));
        for (size_t k = 0; k < block; ++k)
          codes[k] =
              static_cast<uint8_t>(CodeOf(levels.levels[k / format.shared()], format.codes(), values[k]));
        out.Put(row, i, levels, codes);
      }
    }
  });
  return out;
}

StatusOr<LinearFormat> LinearFormat::Create(DType dtype, uint32_t group, size_t columns) {
  if (!IsQuantized(dtype)) return LinearFormat{.dtype = dtype};
  ASSIGN_OR_RETURN(RowFormat blocks, RowFormat::Create(dtype, group, columns));
  return LinearFormat{.dtype = dtype, .blocks = std::move(blocks)};
}

WrittenMatrix WriteNearest(const FloatMatrix& matrix, const LinearFormat& format,
                           std::span<const float> importance, ThreadPool& pool) {
  if (format.blocks) {
    const QuantizedMatrix rounded = RoundToNearest(matrix, *format.blocks, importance, pool);
    return {rounded.Bytes(), rounded.ToFloat(pool)};
  }
  WrittenMatrix out;
  const size_t row_bytes = matrix.columns * Info(format.dtype).block_bytes;
  out.bytes.resize(matrix.rows * row_bytes);
  pool.ParallelFor(matrix.rows, /*grain=*/4, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      const auto bytes = std::span(out.bytes).subspan(row * row_bytes, row_bytes);
      if (format.is_fp8) {
        RoundToFp8(matrix.Row(row), bytes);
      } else {
        EncodeWeights(format.dtype, matrix.Row(row), bytes);
      }
    }
  });
  out.values = ToFloats(
      {.dtype = format.dtype, .data = out.bytes.data(), .rows = matrix.rows, .columns = matrix.columns},
      pool);
  return out;
}

}  // namespace terrace
