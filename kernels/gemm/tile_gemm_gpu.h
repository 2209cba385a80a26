// gemm of some tens of tokens with quantized weights on a GPU: see kernels/gemm/tile_gemm_device.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/gemm/gpu_gemm.h"

namespace terrace {

inline constexpr uint32_t kTileWarpRows = 32;     // of a warp: two tiles
inline constexpr uint32_t kTileUnitColumns = 64;  // what a warp takes at a time
inline constexpr uint32_t kMostTileWarps = 16;    // of a block
inline constexpr uint32_t kMostTileSplits = 16;

// How the sums are cut. A block has row_warps << log2_parts warps, row_warps * kTileWarpRows rows and one of
// `splits` parts of the columns, of which each 1 << log2_parts warps with the same rows take their turns. The
// order in which an output is summed depends on this and on nothing else.
struct TileGemmShape {
  uint32_t row_warps = 8, log2_parts = 1, splits = 1;
};

constexpr uint32_t TileGemmRowBlocks(uint32_t rows, uint32_t row_warps) {
  return (rows + kTileWarpRows * row_warps - 1) / (kTileWarpRows * row_warps);
}

// The cheapest by what bounds a block: its own work, its share of L2's bandwidth for weights and x, and for
// splits what they write and the last of them reads. In clocks of an H100, for 64 tokens of 4-bit codes.
constexpr TileGemmShape TileGemmShapeOf(uint32_t rows, uint32_t columns) {
  constexpr uint64_t kMultiprocessors = 132, kUnitClocks = 112, kStartClocks = 3000, kL2BytesPerClock = 24;
  constexpr uint64_t kUnitBytes = 1280, kUnitBytesOfX = 8192, kPartialClocks = 128;
  const uint64_t units = columns / kTileUnitColumns;
  TileGemmShape best;
  uint64_t least = ~uint64_t{0};
  for (uint32_t row_warps = 1; row_warps <= 8; ++row_warps) {
    const uint32_t log2_parts = row_warps <= 4 ? 2 : 1;
    for (uint32_t splits = 1; splits <= kMostTileSplits; ++splits) {
      const uint64_t of_split = (units + splits - 1) / splits;
      if (splits > 1 && of_split < uint64_t{4} << log2_parts) break;
      const uint64_t blocks = uint64_t{TileGemmRowBlocks(rows, row_warps)} * splits;
      const uint64_t waves = (blocks + kMultiprocessors - 1) / kMultiprocessors;
      const uint64_t work = row_warps * of_split * kUnitClocks;
      const uint64_t traffic = of_split * (row_warps * kUnitBytes + kUnitBytesOfX) / kL2BytesPerClock;
      const uint64_t partials = splits > 1 ? row_warps * (splits + 1) * kPartialClocks : 0;
      const uint64_t clocks = waves * (std::max(work, traffic) + kStartClocks) + partials;
      if (clocks < least) {
        least = clocks;
        best = {.row_warps = row_warps, .log2_parts = log2_parts, .splits = splits};
      }
    }
  }
  return best;
}

constexpr uint32_t TileGemmTokens(uint32_t tokens) { return tokens <= 32 ? 32 : 64; }  // of a block
constexpr uint32_t TileGemmTokenBlocks(uint32_t tokens) {
  return (tokens + TileGemmTokens(tokens) - 1) / TileGemmTokens(tokens);
}

// What splits of an output leave for the last of them. Kernels on one stream may share it.
struct TileGemmScratch {
  float* partials = nullptr;    // [TileGemmPartialFloats], aligned to 16 bytes
  uint32_t* arrived = nullptr;  // [TileGemmCounters]: 0 before the first call; each call leaves 0
};

constexpr size_t TileGemmPartialFloats(const TileGemmShape& shape, uint32_t rows, uint32_t tokens) {
  if (shape.splits == 1) return 0;
  return size_t{TileGemmRowBlocks(rows, shape.row_warps)} * shape.row_warps * kTileWarpRows * shape.splits *
         TileGemmTokenBlocks(tokens) * TileGemmTokens(tokens);
}
constexpr size_t TileGemmPartialFloats(uint32_t rows, uint32_t columns, uint32_t tokens) {
  return TileGemmPartialFloats(TileGemmShapeOf(rows, columns), rows, tokens);
}
// Enough for any columns.
constexpr size_t TileGemmCounters(uint32_t rows, uint32_t tokens) {
  return size_t{TileGemmRowBlocks(rows, 1)} * TileGemmTokenBlocks(tokens);
}

}  // namespace terrace
