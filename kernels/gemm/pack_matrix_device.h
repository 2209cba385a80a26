// PackGpuMatrix (gpu_matrix.h) on a device, to the same bits, from staged rows (pack_matrix_gpu.h). What
// comes over PCIe is a twentieth of what the device's memory moves: loads are of two bytes each, whatever the
// format.
//
// Codes are read four at a time, of columns 4 i to 4 i + 3, which no group of any format splits. The
// arithmetic is that of kernels/quant/weight_codes.h; its products are exact, so a fused multiply-add changes
// nothing.
#pragma once

#include "kernels/gemm/pack_matrix_gpu.h"
#include "kernels/quant/e4m3_device.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr uint32_t kPackThreads = 256;

// A row as the file holds it; without bytes behind the rows of all parts, where the matrix is zeros.
struct PackRow {
  DType dtype = DType::kF32;
  const std::byte* bytes = nullptr;
  float scale = 0;  // of kInt8
};

// As RowOf of gpu_matrix.cc.
TERRACE_DEVICE PackRow PackRowOf(const GpuPackArgs& a, uint32_t row) {
  PackRow out;
  const uint32_t half = row / 8 % 2;
  if (a.is_gated) row = row / 16 * 8 + row % 8;
  bool is_found = false;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kMostPackParts; ++i) {
    const GpuPackPart& part = a.parts[i];
    const bool is_here = !is_found && (a.is_gated ? i == half : row < part.rows);
    if (is_here) {
      is_found = true;
      out.dtype = part.dtype;
      out.bytes = a.staged + part.rows_at + uint64_t{row - part.first} * part.row_bytes;
      if (part.dtype == DType::kInt8) {
        out.scale = reinterpret_cast<const float*>(a.staged + part.scales_at)[row - part.first];
      }
    } else if (!is_found && !a.is_gated) {
      row -= part.rows;
    }
  }
  return out;
}

TERRACE_DEVICE uint32_t TwoBytes(const std::byte* at) { return *reinterpret_cast<const uint16_t*>(at); }
TERRACE_DEVICE uint32_t FourBytes(const std::byte* at) { return TwoBytes(at) | TwoBytes(at + 2) << 16; }
TERRACE_DEVICE uint32_t OneByte(const std::byte* at) { return static_cast<uint32_t>(*at); }
TERRACE_DEVICE float F16At(const std::byte* at) { return simt::F16Low(TwoBytes(at)); }

// Columns of a row that share a scale, as the file has it: value = scale * (code - bias) - minimum.
struct FileGroup {
  float scale = 0, minimum = 0, bias = 0;
};

TERRACE_DEVICE FileGroup Q4_KGroup(const std::byte* block, uint32_t i) {
  uint32_t scale, minimum;
  if (i < 4) {
    scale = OneByte(block + 4 + i) & 63;
    minimum = OneByte(block + 8 + i) & 63;
  } else {
    const uint32_t low = OneByte(block + 8 + i);
    scale = (low & 15) | OneByte(block + i) >> 6 << 4;
    minimum = low >> 4 | OneByte(block + 4 + i) >> 6 << 4;
  }
  return {F16At(block) * static_cast<float>(scale), F16At(block + 2) * static_cast<float>(minimum), 0};
}

// INT4's zero point as a minimum, as weight_codes.h has it.
TERRACE_DEVICE FileGroup Int4Group(const std::byte* block) {
  const float scale = F16At(block);
  return {scale, scale * static_cast<float>(OneByte(block + 2)), 0};
}

// Of a dtype that has codes.
TERRACE_DEVICE FileGroup FileGroupAt(const PackRow& row, uint32_t column) {
  switch (row.dtype) {
    case DType::kQ8_0:
      return {F16At(row.bytes + column / 32 * 34), 0, 128};
    case DType::kQ4_0:
      return {F16At(row.bytes + column / 32 * 18), 0, 8};
    case DType::kQ5_0:
      return {F16At(row.bytes + column / 32 * 22), 0, 16};
    case DType::kQ4_K:
      return Q4_KGroup(row.bytes + column / 256 * 144, column % 256 / 32);
    case DType::kQ6_K: {
      const std::byte* block = row.bytes + column / 256 * 210;
      const uint32_t scale = OneByte(block + 192 + column % 256 / 16);
      return {F16At(block + 208) * static_cast<float>(static_cast<int8_t>(scale)), 0, 32};
    }
    case DType::kInt4G32:
      return Int4Group(row.bytes + column / 32 * 20);
    case DType::kInt4G128:
      return Int4Group(row.bytes + column / 128 * 68);
    case DType::kInt8:
      return {row.scale, 0, 128};
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;
  }
  return {};
}

// Four codes of 4 bits, the first in the lowest, as bytes.
TERRACE_DEVICE uint32_t SpreadNibbles(uint32_t codes) {
  return (codes & 0x000f) | (codes & 0x00f0) << 4 | (codes & 0x0f00) << 8 | (codes & 0xf000) << 12;
}

// Codes of columns [column, column + 4), as bytes; `column` a multiple of 4.
TERRACE_DEVICE uint32_t FourCodes(const PackRow& row, uint32_t column) {
  const uint32_t in32 = column % 32;
  switch (row.dtype) {
    case DType::kQ8_0:
      return FourBytes(row.bytes + column / 32 * 34 + 2 + in32) ^ 0x80808080;
    case DType::kQ4_0:
      return FourBytes(row.bytes + column / 32 * 18 + 2 + in32 % 16) >> in32 / 16 * 4 & 0x0f0f0f0f;
    case DType::kQ5_0: {
      const std::byte* block = row.bytes + column / 32 * 22;
      const uint32_t low = FourBytes(block + 6 + in32 % 16) >> in32 / 16 * 4 & 0x0f0f0f0f;
      const uint32_t fifth = FourBytes(block + 2) >> in32;
      return low | (fifth & 1) << 4 | (fifth & 2) << 11 | (fifth & 4) << 18 | (fifth & 8) << 25;
    }
    case DType::kQ4_K: {
      const uint32_t part = column % 256 / 32;
      const std::byte* from = row.bytes + column / 256 * 144 + 16 + part / 2 * 32 + in32;
      return FourBytes(from) >> part % 2 * 4 & 0x0f0f0f0f;
    }
    case DType::kQ6_K: {
      const uint32_t part = column % 256 / 32, quarter = part % 4;
      const std::byte* block = row.bytes + column / 256 * 210;
      const uint32_t low = FourBytes(block + part / 4 * 64 + quarter % 2 * 32 + in32) >> quarter / 2 * 4;
      const uint32_t high = FourBytes(block + 128 + part / 4 * 32 + in32) >> quarter * 2;
      return (low & 0x0f0f0f0f) | (high & 0x03030303) << 4;
    }
    case DType::kInt4G32:
      return SpreadNibbles(TwoBytes(row.bytes + column / 32 * 20 + 4 + in32 / 2));
    case DType::kInt4G128:
      return SpreadNibbles(TwoBytes(row.bytes + column / 128 * 68 + 4 + column % 128 / 2));
    case DType::kInt8:
      return FourBytes(row.bytes + column) ^ 0x80808080;
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;
  }
  return 0;
}

// As the matrix has it: value = scale * (code - zero); see GroupScaleOf of gpu_matrix.cc.
struct PackedGroup {
  float scale, zero;
  bool has_codes;
};
TERRACE_DEVICE PackedGroup PackedGroupOf(const FileGroup& group) {
  if (group.minimum == 0) return {group.scale, group.bias, true};
  const float zero = group.minimum / simt::F16Low(simt::PackF16(group.scale, 0));
  if (!((zero < 0 ? -zero : zero) <= 65504)) return {group.minimum, 1, false};
  return {group.scale, zero, true};
}

TERRACE_DEVICE bool FitsF16(float scale) {
  const float rounded = simt::F16Low(simt::PackF16(scale, 0));
  const float off = simt::FloatOfBits(Magnitude(rounded - scale));
  return Magnitude(rounded) < kInfinityBits && off <= 0x1p-11f * simt::FloatOfBits(Magnitude(scale));
}

// FourCodes as the matrix has them.
TERRACE_DEVICE uint32_t PackedCodes(const PackRow& row, uint32_t column) {
  if (row.bytes == nullptr) return 0;
  if (row.dtype == DType::kQ4_K && !PackedGroupOf(FileGroupAt(row, column)).has_codes) return 0;
  return FourCodes(row, column);
}

// A word of W4Place: of rows g and g + 8, codes of four columns.
TERRACE_DEVICE uint32_t W4Word(uint32_t low, uint32_t high) {
  const uint32_t both = low | high << 4;  // columns 0 to 3 in bytes 0 to 3 go to bytes 0, 2, 1 and 3
  const uint32_t placed = simt::BytePermute(both, 0, 0x3120);
  return placed << 3 | placed >> 29;
}

// Each warp a piece of kW4 or kW8, and the scales of the groups that begin in it. Grid: enough for the tiles
// of row_count rows.
template <bool kIsNarrow>
TERRACE_KERNEL void TERRACE_BOUNDS(kPackThreads, 1) PackTilesKernel(GpuPackArgs a) {
  constexpr uint32_t kPiece = kIsNarrow ? kW4PieceColumns : kW8PieceColumns;
  const uint32_t of_tile = a.to.matrix.columns / kPiece, lane = simt::Lane();
  const uint32_t i = blockIdx.x * (blockDim.x / simt::kWarp) + simt::WarpIndex();
  const uint32_t tile = a.first_row / kTileRows + i / of_tile, piece = i % of_tile;
  if (tile * kTileRows >= a.first_row + a.row_count) return;
  const uint32_t t = lane % 4, column = piece * kPiece;
  const PackRow low = PackRowOf(a, tile * kTileRows + lane / 4),
                high = PackRowOf(a, tile * kTileRows + lane / 4 + 8);
  uint32_t words[4];
  if constexpr (kIsNarrow) {
    TERRACE_UNROLL
    for (uint32_t w = 0; w < 4; ++w) {
      const uint32_t at = column + w / 2 * 32 + t * 8 + w % 2 * 4;
      words[w] = W4Word(PackedCodes(low, at), PackedCodes(high, at));
    }
  } else {
    TERRACE_UNROLL
    for (uint32_t step = 0; step < 2; ++step) {
      const uint32_t at = column + (a.to.matrix.group == 16 ? step * 16 + t * 4 : t * 8 + step * 4);
      const uint32_t of_low = PackedCodes(low, at), of_high = PackedCodes(high, at);
      words[2 * step] = simt::BytePermute(of_low, of_high, 0x5140);
      words[2 * step + 1] = simt::BytePermute(of_low, of_high, 0x7362);
    }
  }
  const uint64_t place = (uint64_t{tile} * of_tile + piece) * kPieceBytes + lane * 16;
  *reinterpret_cast<uint4*>(a.to.codes + place) = {words[0], words[1], words[2], words[3]};

  const uint32_t group_columns = a.to.matrix.group;
  if (column % group_columns != 0) return;
  const uint32_t together = kPiece > group_columns ? kPiece / group_columns : 1;
  const uint32_t row = lane % kTileRows, in_piece = lane / kTileRows;
  if (in_piece >= together) return;
  const PackRow from = PackRowOf(a, tile * kTileRows + row);
  const uint32_t group = column / group_columns + in_piece,
                 groups = (a.to.matrix.columns + group_columns - 1) / group_columns;
  uint32_t pair = 0;
  if (from.bytes != nullptr) {
    const PackedGroup packed = PackedGroupOf(FileGroupAt(from, group * group_columns));
    pair = simt::PackF16(packed.scale, packed.zero);
    if (!FitsF16(packed.scale)) simt::AtomicMax(a.to.unfit, 1);
  }
  const uint32_t in_tile = ((group / together * 8 + row % 8) * together + group % together) * 2 + row / 8;
  auto* scales = reinterpret_cast<uint32_t*>(a.to.scales) + uint64_t{tile} * groups * kTileRows;
  scales[in_tile] = pair;
}

// The values of columns [column, column + 8); `column` a multiple of 8.
TERRACE_DEVICE void EightValues(const PackRow& row, uint32_t column, float (&out)[kPackColumns]) {
  const auto each = [&](auto value) {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kPackColumns; ++i) out[i] = value(i);
  };
  if (row.bytes == nullptr) return each([](uint32_t) { return 0.0f; });
  switch (row.dtype) {
    case DType::kF32:
      return each([&](uint32_t i) { return reinterpret_cast<const float*>(row.bytes)[column + i]; });
    case DType::kF16:
      return each([&](uint32_t i) { return F16At(row.bytes + 2 * (column + i)); });
    case DType::kBF16:
      return each([&](uint32_t i) { return simt::BF16Low(TwoBytes(row.bytes + 2 * (column + i))); });
    default:
      break;
  }
  const FileGroup group = FileGroupAt(row, column);
  const uint32_t codes[2] = {FourCodes(row, column), FourCodes(row, column + 4)};
  each([&](uint32_t i) {
    const auto code = static_cast<float>(codes[i / 4] >> i % 4 * 8 & 0xff);
    return group.scale * (code - group.bias) - group.minimum;
  });
}

// The bf16 of a column, of a dtype of 16 bits.
TERRACE_DEVICE uint32_t BF16BitsAt(const PackRow& row, uint32_t column) {
  const std::byte* at = row.bytes + 2 * column;
  return row.dtype == DType::kBF16 ? TwoBytes(at) : simt::PackBF16(F16At(at), 0) & 0xffff;
}

// What is kept of columns [column, column + 4) and where it was, as PackFour of gpu_matrix.cc.
struct SparseFour {
  uint32_t kept = 0, places = 2 | 3 << 2;
  bool fits = true;
};
TERRACE_DEVICE SparseFour SparseFourOf(const PackRow& row, uint32_t column) {
  if (row.bytes == nullptr) return {};
  uint32_t v[4], not_zero = 0;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 4; ++i) {
    v[i] = BF16BitsAt(row, column + i);
    if ((v[i] & 0x7fff) != 0) not_zero |= 1u << i;
  }
  const uint32_t first = (not_zero & 1) != 0 ? 0 : (not_zero & 2) != 0 ? 1 : 2;
  const uint32_t second = (not_zero & 8) != 0 || first == 2 ? 3 : (not_zero & 4) != 0 || first == 1 ? 2 : 1;
  const uint32_t low = first == 0 ? v[0] : first == 1 ? v[1] : v[2];
  const uint32_t high = second == 1 ? v[1] : second == 2 ? v[2] : v[3];
  const uint32_t others = not_zero & ~(1u << first | 1u << second);
  return {low | high << 16, first | second << 2, others == 0};
}

// kSparse: each warp a piece. Grid: enough for the tiles of row_count rows.
TERRACE_KERNEL void TERRACE_BOUNDS(kPackThreads, 1) PackSparseKernel(GpuPackArgs a) {
  const uint32_t of_tile = a.to.matrix.columns / kSparsePieceColumns, lane = simt::Lane(), t = lane % 4;
  const uint32_t i = blockIdx.x * (blockDim.x / simt::kWarp) + simt::WarpIndex();
  const uint32_t tile = a.first_row / kTileRows + i / of_tile, piece = i % of_tile;
  if (tile * kTileRows >= a.first_row + a.row_count) return;
  const PackRow low = PackRowOf(a, tile * kTileRows + lane / 4),
                high = PackRowOf(a, tile * kTileRows + lane / 4 + 8);
  uint32_t kept[2][4], own_places = 0;
  bool fits = true;
  TERRACE_UNROLL
  for (uint32_t run = 0; run < 4; ++run) {
    const uint32_t column = piece * kSparsePieceColumns + run * 16 + t * 4;
    const SparseFour of_low = SparseFourOf(low, column), of_high = SparseFourOf(high, column);
    kept[run / 2][run % 2 * 2] = of_low.kept;
    kept[run / 2][run % 2 * 2 + 1] = of_high.kept;
    fits = fits && of_low.fits && of_high.fits;
    uint32_t places = of_low.places << 4 * t | of_high.places << (16 + 4 * t);
    places |= simt::ShuffleXor(places, 1);
    places |= simt::ShuffleXor(places, 2);
    if (run == t) own_places = places;
  }
  std::byte* const to = a.to.codes + (uint64_t{tile} * of_tile + piece) * kSparsePieceBytes;
  TERRACE_UNROLL
  for (uint32_t step = 0; step < 2; ++step) {
    *reinterpret_cast<uint4*>(to + step * 512 + lane * 16) = {kept[step][0], kept[step][1], kept[step][2],
                                                              kept[step][3]};
  }
  *reinterpret_cast<uint32_t*>(to + kSparseKeptBytes + lane * 4) = own_places;
  if (!fits) simt::AtomicMax(a.to.unfit, 1);
}

// kBF16: each thread eight columns.
TERRACE_KERNEL void TERRACE_BOUNDS(kPackThreads, 1) PackRowsKernel(GpuPackArgs a) {
  const uint32_t of_row = a.to.matrix.columns / kPackColumns;
  const uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const uint64_t in_part = i / of_row;
  if (in_part >= a.row_count) return;
  const uint32_t row = a.first_row + static_cast<uint32_t>(in_part),
                 column = static_cast<uint32_t>(i % of_row) * kPackColumns;
  const PackRow from = PackRowOf(a, row);
  auto* to = reinterpret_cast<uint4*>(a.to.codes + (uint64_t{row} * a.to.matrix.columns + column) * 2);
  if (from.dtype == DType::kBF16) {
    *to = simt::LoadStream(reinterpret_cast<const uint4*>(from.bytes + 2 * column));
    return;
  }
  float v[kPackColumns];
  EightValues(from, column, v);
  *to = {simt::PackBF16(v[0], v[1]), simt::PackBF16(v[2], v[3]), simt::PackBF16(v[4], v[5]),
         simt::PackBF16(v[6], v[7])};
}

// kE4M3, as QuantizeE4M3: each block a row, which it reads twice.
TERRACE_KERNEL void TERRACE_BOUNDS(kPackThreads, 4) PackE4M3Kernel(GpuPackArgs a) {
  TERRACE_SHARED uint32_t of_warps[kPackThreads / simt::kWarp];
  const uint32_t eights = a.to.matrix.columns / kPackColumns, row = a.first_row + blockIdx.x;
  const PackRow from = PackRowOf(a, row);
  uint32_t largest = 0;
  float v[kPackColumns];
  for (uint32_t i = threadIdx.x; i < eights; i += kPackThreads) {
    EightValues(from, i * kPackColumns, v);
    TERRACE_UNROLL
    for (const float value : v) {
      const uint32_t magnitude = Magnitude(value);
      if (magnitude <= kInfinityBits) largest = Larger(largest, magnitude);  // not a NaN
    }
  }
  for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) {
    largest = Larger(largest, simt::ShuffleXor(largest, mask));
  }
  if (simt::Lane() == 0) of_warps[simt::WarpIndex()] = largest;
  simt::SyncThreads();
  for (uint32_t i = 0; i < kPackThreads / simt::kWarp; ++i) largest = Larger(largest, of_warps[i]);
  const float scale = simt::FloatOfBits(largest) / kLargestE4M3;
  if (threadIdx.x == 0) reinterpret_cast<float*>(a.to.scales)[row] = scale;
  auto* out = reinterpret_cast<uint2*>(a.to.codes + uint64_t{row} * a.to.matrix.columns);
  for (uint32_t i = threadIdx.x; i < eights; i += kPackThreads) {
    EightValues(from, i * kPackColumns, v);
    uint32_t codes[2] = {};
    TERRACE_UNROLL
    for (uint32_t j = 0; j < kPackColumns; ++j) {
      codes[j / 4] |= E4M3Code(scale == 0 ? 0.0f : v[j] / scale) << j % 4 * 8;
    }
    out[i] = {codes[0], codes[1]};
  }
}

}  // namespace terrace
