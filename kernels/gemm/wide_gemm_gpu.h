// gemm of tens to thousands of tokens with quantized weights on Hopper: see kernels/gemm/wide_gemm_device.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/gemm/tile_gemm_gpu.h"

namespace terrace {

inline constexpr uint32_t kWideGroupRows = 64;  // of a warpgroup: 16 of each of its warps
inline constexpr uint32_t kMostWideGroups = 4, kMostWideSplits = 16;

// How the sums are cut: a block has row_groups * kWideGroupRows rows, WideGemmTokens tokens and one of
// `splits` parts of the columns. With scales_sums (WideGemmCanScaleSums) codes are multiplied and the sums of
// each group are scaled, instead of codes. How an output is summed depends on `splits`, `scales_sums`, the
// columns and the format, and on nothing else.
struct WideGemmShape {
  uint32_t row_groups = 4, splits = 1;
  bool scales_sums = false;
  bool operator==(const WideGemmShape&) const = default;
};

constexpr uint32_t WideGemmRowBlocks(uint32_t rows, uint32_t row_groups) {
  return (rows + kWideGroupRows * row_groups - 1) / (kWideGroupRows * row_groups);
}

// Tokens of a block: 16, 32, 64, 96 or 128, the fewest with which no more blocks are needed than with 128.
constexpr uint32_t WideGemmTokens(uint32_t tokens) {
  const uint32_t blocks = std::max((tokens + 127) / 128, 1u), each = (tokens + blocks - 1) / blocks;
  return each <= 16 ? 16 : each <= 32 ? 32 : (each + 31) / 32 * 32;
}
constexpr uint32_t WideGemmTokenBlocks(uint32_t tokens) {
  return (tokens + WideGemmTokens(tokens) - 1) / WideGemmTokens(tokens);
}

// Columns come in stages of two pieces (gpu_matrix.h); of the last there may be only one.
constexpr uint32_t WideStageColumns(GpuFormat format) { return format == GpuFormat::kW8 ? 64 : 128; }
constexpr uint32_t WideGemmStages(const GpuMatrix& weights) {
  const uint32_t columns = WideStageColumns(weights.format);
  return (weights.columns + columns - 1) / columns;
}

// kW4 whose stages are of one group, with zeros that are whole numbers (INT4's), and tokens so few that the
// registers hold two sets of sums.
inline constexpr uint32_t kMostWideScaledTokens = 32;  // of a block
constexpr bool WideGemmCanScaleSums(const GpuMatrix& weights, uint32_t tokens) {
  return weights.format == GpuFormat::kW4 && weights.group >= WideStageColumns(weights.format) &&
         WideGemmTokens(tokens) <= kMostWideScaledTokens;
}

// About how long a product takes by what bounds it, in clocks of an H100: codes to bf16, the tensor cores,
// what all blocks together read through L2, the weights from memory; for splits what they leave for the last
// of them, which reads it.
constexpr uint64_t WideGemmClocks(const GpuMatrix& weights, uint32_t tokens, const WideGemmShape& shape) {
  constexpr uint64_t kMultiprocessors = 132, kStartClocks = 3000, kL2BytesPerClock = 3168;
  constexpr uint64_t kMemoryBytesPerClock = 1700, kLastClocks = 2000, kLastBytesPerClock = 80;
  constexpr uint64_t kUnitColumns = 64;
  const uint64_t convert_clocks = shape.scales_sums ? 110 : 150;  // of 64 rows
  const uint64_t group_bytes = weights.format == GpuFormat::kW4 ? 2176 : 4224;
  const uint64_t block_tokens = WideGemmTokens(tokens), groups = shape.row_groups;
  const uint64_t row_blocks = WideGemmRowBlocks(weights.rows, shape.row_groups);
  const uint64_t blocks = row_blocks * WideGemmTokenBlocks(tokens) * shape.splits;
  const uint64_t waves = (blocks + kMultiprocessors - 1) / kMultiprocessors;
  const uint64_t busy = std::min(blocks, kMultiprocessors);
  const uint64_t units = (weights.columns / kUnitColumns + shape.splits - 1) / shape.splits;
  const uint64_t unit_bytes = groups * group_bytes + block_tokens * kUnitColumns * 2;
  const uint64_t unit =
      std::max({groups * convert_clocks, groups * block_tokens * 2, unit_bytes * busy / kL2BytesPerClock});
  const uint64_t bytes = uint64_t{weights.rows} * weights.columns * group_bytes / (64 * 64);
  const uint64_t sums_bytes = block_tokens * groups * kWideGroupRows * 4;
  const uint64_t last =
      shape.splits == 1 ? 0 : kLastClocks + (shape.splits + 1) * sums_bytes / kLastBytesPerClock;
  return std::max(waves * (units * unit + kStartClocks), bytes / kMemoryBytesPerClock + kStartClocks) + last;
}

// More tokens make blocks enough without splits, which need counters for each block of tokens.
inline constexpr uint32_t kMostWideSplitTokens = 512;
// The cheapest of so many row groups.
constexpr WideGemmShape WideGemmShapeOf(const GpuMatrix& weights, uint32_t tokens, uint32_t row_groups) {
  WideGemmShape best{.row_groups = row_groups, .scales_sums = WideGemmCanScaleSums(weights, tokens)};
  if (tokens > kMostWideSplitTokens) return best;
  WideGemmShape shape = best;
  for (shape.splits = 2; shape.splits <= kMostWideSplits; ++shape.splits) {
    if (WideGemmStages(weights) < 2 * shape.splits) break;
    if (WideGemmClocks(weights, tokens, shape) < WideGemmClocks(weights, tokens, best)) best = shape;
  }
  return best;
}

// Worth timing, of each number of row groups one: the likeliest first. One group has too few warps to hide
// what they wait for, but where there are few rows. Last, if sums can be scaled: the likeliest without that.
inline std::vector<WideGemmShape> WideGemmShapes(const GpuMatrix& weights, uint32_t tokens) {
  constexpr uint32_t kFewRows = 1024;
  std::vector<WideGemmShape> shapes;
  for (uint32_t groups = kMostWideGroups; groups > 0; --groups) {
    if (groups > 1 ? weights.rows <= kWideGroupRows * (groups - 1) : weights.rows > kFewRows) continue;
    shapes.push_back(WideGemmShapeOf(weights, tokens, groups));
  }
  std::ranges::stable_sort(
      shapes, {}, [&](const WideGemmShape& shape) { return WideGemmClocks(weights, tokens, shape); });
  if (shapes[0].scales_sums) {
    shapes.push_back(shapes[0]);
    shapes.back().scales_sums = false;
  }
  return shapes;
}

// What splits leave for the last of them, as TileGemmScratch: kernels on one stream may share it.
constexpr size_t WideGemmPartialFloats(const WideGemmShape& shape, uint32_t rows, uint32_t tokens) {
  if (shape.splits == 1) return 0;
  return size_t{WideGemmRowBlocks(rows, shape.row_groups)} * shape.row_groups * kWideGroupRows *
         shape.splits * WideGemmTokenBlocks(tokens) * WideGemmTokens(tokens);
}
// Enough for any shape.
constexpr size_t WideGemmCounters(uint32_t rows, uint32_t tokens) {
  return size_t{rows / kTileRows} * WideGemmTokenBlocks(tokens);
}

}  // namespace terrace
