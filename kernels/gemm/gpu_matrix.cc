#include "kernels/gemm/gpu_matrix.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/quant/e4m3_row.h"
#include "kernels/quant/weight_codes.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

constexpr float kLargestF16 = 65504;
constexpr uint32_t kInt8Group = 128;

bool IsFloat(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16; }

// Of a dtype that has codes.
GpuFormat CodesOf(DType dtype) {
  const bool is_narrow =
      dtype == DType::kQ4_0 || dtype == DType::kQ4_K || dtype == DType::kInt4G32 || dtype == DType::kInt4G128;
  return is_narrow ? GpuFormat::kW4 : GpuFormat::kW8;
}
uint32_t GroupOf(DType dtype) {
  uint32_t group = kInt8Group;
  WithBlocks(dtype, [&](auto blocks) { group = decltype(blocks)::kShared; });
  return group;
}

// value = scale * (code - zero); where all codes are worth nothing beside the minimum (scale 0, or so small
// that zero is beyond f16, when 15 codes are less than 2^-12 of it), they are 0: scale * (0 - 1) is -minimum.
struct GroupScale {
  float scale, zero;
  bool without_codes;
};
GroupScale GroupScaleOf(float scale, float minimum, int bias) {
  if (minimum == 0) return {scale, static_cast<float>(bias), false};
  const float zero = minimum / FloatFromF16(F16FromFloat(scale));
  if (!(std::abs(zero) <= kLargestF16)) return {minimum, 1, true};
  return {scale, zero, false};
}

bool FitsF16(float scale) {
  const float rounded = FloatFromF16(F16FromFloat(scale));
  return std::isfinite(rounded) && std::abs(rounded - scale) <= 0x1p-11f * std::abs(scale);
}

template <typename Use>
void ForGroupsOfRow(const WeightMatrix& matrix, size_t row, Use use) {
  if (matrix.dtype == DType::kInt8) {
    for (size_t i = 0; i < matrix.columns; i += kInt8Group)
      use(i, GroupScale{matrix.row_scales[row], 128, false});
  }
  WithBlocks(matrix.dtype, [&](auto blocks) {
    using Blocks = decltype(blocks);
    const std::byte* block = matrix.Row(row);
    for (size_t i = 0; i < matrix.columns; i += Blocks::kElements, block += Info(matrix.dtype).block_bytes) {
      for (size_t shared = 0; shared < Blocks::kElements / Blocks::kShared; ++shared) {
        use(i + shared * Blocks::kShared,
            GroupScaleOf(Blocks::Scale(block, shared), Blocks::Minimum(block, shared), Blocks::kBias));
      }
    }
  });
}

bool ScalesFit(const WeightMatrix& matrix, ThreadPool& pool) {
  std::atomic<bool> fit = true;
  pool.ParallelFor(matrix.rows, 16, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end && fit; ++row) {
      ForGroupsOfRow(matrix, row, [&](size_t, const GroupScale& group) {
        if (!FitsF16(group.scale)) fit = false;
      });
    }
  });
  return fit;
}

// A row of codes and, for each group of the GPU's matrix, {scale, zero}.
struct CodeRow {
  std::vector<uint8_t> codes;
  std::vector<uint32_t> scales;
};

void ReadCodes(const WeightMatrix& matrix, size_t row, uint32_t group, CodeRow& out) {
  const std::byte* data = matrix.Row(row);
  if (matrix.dtype == DType::kInt8) {
    for (size_t i = 0; i < matrix.columns; ++i) out.codes[i] = ByteAt(data + i) ^ 0x80;
  }
  WithBlocks(matrix.dtype, [&](auto blocks) {
    using Blocks = decltype(blocks);
    for (size_t i = 0; i < matrix.columns; i += kCodes) {
      uint8_t codes[kCodes];
      Blocks::Codes(data + i / Blocks::kElements * Info(matrix.dtype).block_bytes,
                    i % Blocks::kElements / kCodes, codes);
      std::copy_n(codes, kCodes, &out.codes[i]);
    }
  });
  const uint32_t shared = GroupOf(matrix.dtype);
  ForGroupsOfRow(matrix, row, [&](size_t first, const GroupScale& from) {
    const size_t end = std::min<size_t>(first + shared, matrix.columns);
    const uint32_t pair = F16FromFloat(from.scale) | uint32_t{F16FromFloat(from.zero)} << 16;
    for (size_t i = first; i < end; i += group) out.scales[i / group] = pair;
    if (from.without_codes) std::fill(&out.codes[first], out.codes.data() + end, uint8_t{0});
  });
}

struct PartRow {
  const WeightMatrix* part = nullptr;  // null behind all parts: the row is zeros
  size_t row = 0;
};
PartRow RowOf(const GpuMatrixParts& parts, size_t row) {
  if (parts.gated) return {&parts.parts[row / 8 % 2], row / 16 * 8 + row % 8};
  for (const WeightMatrix& part : parts.parts) {
    if (row < part.rows) return {&part, row};
    row -= part.rows;
  }
  return {};
}

// One tile of kW4 or kW8. `rows` borrows kTileRows rows; what is past the parts is zeros.
void PackTile(const GpuMatrix& matrix, const std::vector<CodeRow>& rows, std::byte* codes,
              std::byte* scales) {
  const bool is_narrow = matrix.format == GpuFormat::kW4;
  const uint32_t piece_columns = is_narrow ? kW4PieceColumns : kW8PieceColumns;
  for (uint32_t piece = 0; piece < matrix.columns / piece_columns; ++piece) {
    uint32_t words[32][4] = {};
    for (uint32_t row = 0; row < kTileRows; ++row) {
      const uint8_t* from = &rows[row].codes[piece * piece_columns];
      for (uint32_t column = 0; column < piece_columns; ++column) {
        const CodePlace place = is_narrow ? W4Place(row, column) : W8Place(row, column, matrix.group);
        uint32_t& word = words[place.lane][place.word];
        word |= uint32_t{from[column]} << place.bit;
        if (place.bit > 28) word |= uint32_t{from[column]} >> (32 - place.bit);  // goes round
      }
    }
    std::memcpy(codes + piece * size_t{kPieceBytes}, words, kPieceBytes);
  }
  const uint32_t groups = GroupsOf(matrix), together = GroupsOfPiece(matrix.format, matrix.group);
  for (uint32_t group = 0; group < groups; ++group) {
    for (uint32_t row = 0; row < kTileRows; ++row) {
      const size_t place = ((group / together * 8 + row % 8) * together + group % together) * 2 + row / 8;
      std::memcpy(scales + 4 * place, &rows[row].scales[group], 4);
    }
  }
}

void PackTiles(const GpuMatrixParts& parts, const GpuMatrix& matrix, std::byte* codes, std::byte* scales,
               ThreadPool& pool) {
  const uint32_t groups = GroupsOf(matrix);
  const size_t tile_codes = GpuCodeBytes(matrix) / TilesOf(matrix);
  const size_t tile_scales = size_t{groups} * kTileRows * 4;
  pool.ParallelFor(TilesOf(matrix), 1, [&](size_t begin, size_t end) {
    std::vector<CodeRow> rows(kTileRows,
                              {std::vector<uint8_t>(matrix.columns), std::vector<uint32_t>(groups)});
    for (size_t tile = begin; tile < end; ++tile) {
      for (size_t i = 0; i < kTileRows; ++i) {
        const PartRow from = RowOf(parts, tile * kTileRows + i);
        if (from.part != nullptr) {
          ReadCodes(*from.part, from.row, matrix.group, rows[i]);
        } else {
          std::ranges::fill(rows[i].codes, uint8_t{0});
          std::ranges::fill(rows[i].scales, 0u);
        }
      }
      PackTile(matrix, rows, codes + tile * tile_codes, scales + tile * tile_scales);
    }
  });
}

// What is kept of four bf16, at most two of which are not zero, and where it was.
struct PackedFour {
  uint16_t kept[2];
  uint32_t places;
};
PackedFour PackFour(const uint16_t* four) {
  const auto is_kept = [&](uint32_t i) { return (four[i] & 0x7fff) != 0; };
  uint32_t first = 0, second = 3, count = 0;
  for (uint32_t i = 0; i < 4; ++i) count += is_kept(i) ? 1 : 0;
  CHECK(count <= 2, count, " of four are not zero");
  while (first < 2 && !is_kept(first)) ++first;
  while (second > first + 1 && !is_kept(second)) --second;
  return {{four[first], four[second]}, first | second << 2};
}

void DecodeRowOf(const GpuMatrixParts& parts, size_t row, std::vector<float>& out) {
  const PartRow from = RowOf(parts, row);
  if (from.part == nullptr) {
    std::ranges::fill(out, 0.0f);
  } else {
    DecodeRow(*from.part, from.row, out.data());
  }
}

void PackSparse(const GpuMatrixParts& parts, const GpuMatrix& matrix, std::byte* codes, ThreadPool& pool) {
  const size_t pieces = matrix.columns / kSparsePieceColumns;
  pool.ParallelFor(TilesOf(matrix), 1, [&](size_t begin, size_t end) {
    std::vector<float> values(matrix.columns);
    std::vector<uint16_t> rounded(matrix.columns);
    for (size_t tile = begin; tile < end; ++tile) {
      std::byte* const to = codes + tile * pieces * kSparsePieceBytes;
      std::memset(to, 0, pieces * kSparsePieceBytes);
      for (uint32_t row = 0; row < kTileRows; ++row) {
        DecodeRowOf(parts, tile * kTileRows + row, values);
        std::ranges::transform(values, rounded.begin(), BF16FromFloat);
        for (uint32_t four = 0; four < matrix.columns / 4; ++four) {
          const PackedFour packed = PackFour(&rounded[4 * four]);
          const SparsePlace place = SparsePlaceOf(row, four % (kSparsePieceColumns / 4));
          std::byte* const piece = to + four / (kSparsePieceColumns / 4) * size_t{kSparsePieceBytes};
          std::memcpy(piece + place.kept, packed.kept, 4);
          const uint32_t word = LoadUnaligned<uint32_t>(piece + place.places) | packed.places << place.bit;
          std::memcpy(piece + place.places, &word, 4);
        }
      }
    }
  });
}

void PackRows(const GpuMatrixParts& parts, const GpuMatrix& matrix, std::byte* codes, std::byte* scales,
              ThreadPool& pool) {
  const size_t columns = matrix.columns;
  pool.ParallelFor(matrix.rows, 16, [&](size_t begin, size_t end) {
    std::vector<float> values(columns);
    std::vector<uint16_t> rounded(columns);
    for (size_t row = begin; row < end; ++row) {
      const PartRow from = RowOf(parts, row);
      if (matrix.format == GpuFormat::kBF16 && from.part != nullptr && from.part->dtype == DType::kBF16) {
        std::memcpy(codes + 2 * columns * row, from.part->Row(from.row), 2 * columns);
        continue;
      }
      DecodeRowOf(parts, row, values);
      if (matrix.format == GpuFormat::kBF16) {
        std::ranges::transform(values, rounded.begin(), BF16FromFloat);
        std::memcpy(codes + 2 * columns * row, rounded.data(), 2 * columns);
      } else {
        const float scale = QuantizeE4M3(values, reinterpret_cast<uint8_t*>(codes + columns * row));
        std::memcpy(scales + 4 * row, &scale, 4);
      }
    }
  });
}

}  // namespace

size_t GpuCodeBytes(const GpuMatrix& matrix) {
  const size_t columns = matrix.columns;
  switch (matrix.format) {
    case GpuFormat::kBF16:
      return matrix.rows * columns * 2;
    case GpuFormat::kE4M3:
      return matrix.rows * columns;
    case GpuFormat::kW4:
      return TilesOf(matrix) * (columns / kW4PieceColumns) * kPieceBytes;
    case GpuFormat::kW8:
      return TilesOf(matrix) * (columns / kW8PieceColumns) * kPieceBytes;
    case GpuFormat::kSparse:
      return TilesOf(matrix) * (columns / kSparsePieceColumns) * kSparsePieceBytes;
  }
  return 0;
}

size_t GpuScaleBytes(const GpuMatrix& matrix) {
  switch (matrix.format) {
    case GpuFormat::kBF16:
    case GpuFormat::kSparse:
      return 0;
    case GpuFormat::kE4M3:
      return size_t{matrix.rows} * 4;
    case GpuFormat::kW4:
    case GpuFormat::kW8:
      return size_t{TilesOf(matrix)} * kTileRows * GroupsOf(matrix) * 4;
  }
  return 0;
}

GpuMatrix GpuMatrixByFormat(const GpuMatrixParts& parts) {
  GpuMatrix matrix{.columns = static_cast<uint32_t>(parts.parts[0].columns)};
  GpuFormat narrowest = GpuFormat::kW4;
  uint32_t group = kInt8Group;
  bool has_codes = matrix.columns % kW4PieceColumns == 0;
  for (const WeightMatrix& part : parts.parts) {
    CHECK(part.columns == matrix.columns);
    matrix.rows += static_cast<uint32_t>(part.rows);
    has_codes = has_codes && !IsFloat(part.dtype);
    if (CodesOf(part.dtype) == GpuFormat::kW8) narrowest = GpuFormat::kW8;
    group = std::min(group, GroupOf(part.dtype));
  }
  CHECK(!parts.gated || (parts.parts.size() == 2 && parts.parts[0].rows == parts.parts[1].rows &&
                         parts.parts[0].rows % 8 == 0));
  if (!has_codes) return matrix;
  matrix.format = narrowest;
  matrix.group = group;
  matrix.has_row_scales =
      std::ranges::all_of(parts.parts, [](const WeightMatrix& part) { return part.dtype == DType::kInt8; });
  return matrix;
}

GpuMatrix GpuMatrixOf(const GpuMatrixParts& parts, ThreadPool& pool) {
  GpuMatrix matrix = GpuMatrixByFormat(parts);
  if (MayBeSparse(parts, pool) &&
      std::ranges::all_of(parts.parts, [&](const WeightMatrix& part) { return IsTwoOfFour(part, pool); })) {
    matrix.format = GpuFormat::kSparse;
    return matrix;
  }
  if (matrix.format != GpuFormat::kBF16 &&
      !std::ranges::all_of(parts.parts, [&](const auto& part) { return ScalesFit(part, pool); })) {
    matrix.format = GpuFormat::kBF16;
    matrix.group = 0;
    matrix.has_row_scales = false;
  }
  return matrix;
}

bool MayBeSparse(const GpuMatrixParts& parts, ThreadPool& pool) {
  return std::ranges::all_of(parts.parts, [&](const WeightMatrix& part) {
    const bool is_16_bits = part.dtype == DType::kF16 || part.dtype == DType::kBF16;  // INT8 may be 2:4 too
    return is_16_bits && part.columns % kSparsePieceColumns == 0 &&
           IsTwoOfFour(RowsOf(part, 0, std::min(part.rows, kSparseSampleRows)), pool);
  });
}

void PackGpuMatrix(const GpuMatrixParts& parts, const GpuMatrix& matrix, std::byte* codes, std::byte* scales,
                   ThreadPool& pool) {
  if (matrix.format == GpuFormat::kSparse) return PackSparse(parts, matrix, codes, pool);
  if (matrix.format == GpuFormat::kBF16 || matrix.format == GpuFormat::kE4M3) {
    PackRows(parts, matrix, codes, scales, pool);
  } else {
    PackTiles(parts, matrix, codes, scales, pool);
  }
}

}  // namespace terrace
