#include <algorithm>

#include "base/status.h"
#include "kernels/gemm/pack_matrix_gpu.h"

namespace terrace {
namespace {

constexpr uint64_t kAlignment = 256;

uint64_t Aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

uint64_t ScaleBytes(const WeightMatrix& part) { return part.dtype == DType::kInt8 ? sizeof(float) : 0; }

void AddPieces(uint64_t at, const void* from, size_t bytes, std::vector<StagedPiece>& out) {
  for (size_t done = 0; done < bytes; done += kMostStagedPieceBytes) {
    out.push_back({.at = at + done,
                   .from = static_cast<const std::byte*>(from) + done,
                   .bytes = std::min(kMostStagedPieceBytes, bytes - done)});
  }
}

// Columns of a wider matrix lie apart in the file: each row is a piece.
void AddRows(const WeightMatrix& from, const GpuPackPart& part, std::vector<StagedPiece>& out) {
  if (from.RowPitch() == part.row_bytes) {
    AddPieces(part.rows_at, from.Row(part.first), size_t{part.count} * part.row_bytes, out);
    return;
  }
  for (uint32_t i = 0; i < part.count; ++i) {
    AddPieces(part.rows_at + uint64_t{i} * part.row_bytes, from.Row(part.first + i), part.row_bytes, out);
  }
}

}  // namespace

GpuPackArgs GpuPackArgsOf(const GpuMatrixParts& parts, const GpuPackTarget& to, uint32_t first_row,
                          uint32_t row_count) {
  CHECK(parts.parts.size() <= kMostPackParts && first_row % kTileRows == 0 &&
        first_row + row_count <= to.matrix.rows &&
        (!parts.gated || to.matrix.rows == 2 * parts.parts[0].rows));
  GpuPackArgs args{.to = to, .is_gated = parts.gated, .first_row = first_row, .row_count = row_count};
  uint64_t end = 0;
  uint32_t before = 0;  // rows of the parts before this one
  for (size_t i = 0; i < parts.parts.size(); ++i) {
    const WeightMatrix& part = parts.parts[i];
    const auto rows = static_cast<uint32_t>(part.rows);
    const auto of_part = [&](uint32_t row) {  // how many of its rows are before row `row` of the matrix
      if (parts.gated) return row / 2;        // a multiple of 16, or the end
      return std::min(row - std::min(row, before), rows);
    };
    const uint32_t first = of_part(first_row), count = of_part(first_row + row_count) - first;
    const auto row_bytes = static_cast<uint32_t>(part.RowBytes());
    const uint64_t scales_at = end + Aligned(uint64_t{count} * row_bytes);
    args.parts[i] = {.dtype = part.dtype,
                     .rows = rows,
                     .first = first,
                     .count = count,
                     .row_bytes = row_bytes,
                     .rows_at = end,
                     .scales_at = scales_at};
    end = scales_at + Aligned(count * ScaleBytes(part));
    before += rows;
  }
  return args;
}

uint64_t StagedBytes(const GpuPackArgs& args) {
  uint64_t end = 0;
  for (const GpuPackPart& part : args.parts) {
    const uint64_t scales = part.dtype == DType::kInt8 ? sizeof(float) * part.count : 0;
    end = std::max(end, part.scales_at + Aligned(scales));
  }
  return end;
}

uint32_t RowsStagedIn(const GpuMatrixParts& parts, uint64_t bytes) {
  uint64_t of_row = 1;
  for (const WeightMatrix& part : parts.parts) of_row = std::max(of_row, part.RowBytes() + ScaleBytes(part));
  const uint64_t lost = 2 * kAlignment * parts.parts.size();
  const uint64_t rows = (bytes - std::min(bytes, lost)) / of_row / kTileRows * kTileRows;
  return static_cast<uint32_t>(std::min<uint64_t>(rows, 1u << 30));
}

std::vector<StagedPiece> StagedPieces(const GpuMatrixParts& parts, const GpuPackArgs& args) {
  std::vector<StagedPiece> out;
  for (size_t i = 0; i < parts.parts.size(); ++i) {
    const WeightMatrix& from = parts.parts[i];
    const GpuPackPart& part = args.parts[i];
    AddRows(from, part, out);
    if (from.dtype == DType::kInt8) {
      AddPieces(part.scales_at, from.row_scales + part.first, part.count * sizeof(float), out);
    }
  }
  return out;
}

}  // namespace terrace
