// A GpuMatrix of codes as [rows, columns] bf16, row-major, for gemms that take nothing else: each value is
// rounded once. Bound by memory: each thread reads 16 bytes of codes, or 8 of E4M3.
#pragma once

#include "kernels/gemm/weight_pieces_device.h"

namespace terrace {

inline constexpr uint32_t kDequantizeThreads = 256;

// Each thread 8 codes of a row; columns a multiple of 8.
TERRACE_KERNEL void TERRACE_BOUNDS(kDequantizeThreads, 1)
    DequantizeE4M3Kernel(GpuMatrix matrix, uint16_t* out) {
  simt::LetNextStart();
  const uint32_t of_row = matrix.columns / 8, i = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t row = i / of_row;
  if (row >= matrix.rows) return simt::WaitForPrevious();
  const uint2 codes = simt::LoadStream(static_cast<const uint2*>(matrix.codes) + i);
  const float scale = simt::LoadReadOnly(static_cast<const float*>(matrix.scales) + row);
  uint32_t values[4];
  TERRACE_UNROLL
  for (uint32_t pair = 0; pair < 4; ++pair) {
    const uint32_t two = E4M3Pair(pair < 2 ? codes.x : codes.y, pair % 2);
    values[pair] = simt::PackBF16(simt::BF16Low(two) * scale, simt::BF16High(two) * scale);
  }
  simt::WaitForPrevious();
  reinterpret_cast<uint4*>(out)[i] = {values[0], values[1], values[2], values[3]};
}

// Each warp a piece.
template <typename Pieces>
TERRACE_KERNEL void TERRACE_BOUNDS(kDequantizeThreads, 1)
    DequantizeTilesKernel(GpuMatrix matrix, uint16_t* out) {
  simt::LetNextStart();
  const uint32_t of_tile = matrix.columns / Pieces::kColumns, lane = simt::Lane();
  const uint32_t i = blockIdx.x * (blockDim.x / simt::kWarp) + simt::WarpIndex();
  const uint32_t tile = i / of_tile, piece = i % of_tile;
  if (tile * kTileRows >= matrix.rows) return simt::WaitForPrevious();
  const auto from = Pieces(matrix, tile, piece, lane).Load();
  constexpr uint32_t kSteps = Pieces::kRun / 4;
  uint32_t values[Pieces::kRuns][2][2 * kSteps];  // of rows g and g + 8
  TERRACE_UNROLL
  for (uint32_t run = 0; run < Pieces::kRuns; ++run) {
    const uint32_t group = run * Pieces::kGroups / Pieces::kRuns;
    TERRACE_UNROLL
    for (uint32_t step = 0; step < kSteps; ++step) {
      uint32_t a[4];
      Pieces::Fragment(from, run, step, a);
      TERRACE_UNROLL
      for (uint32_t j = 0; j < 4; ++j) {
        const float scale = simt::F16Low(from.scales[2 * group + j % 2]);
        const float zero = simt::F16High(from.scales[2 * group + j % 2]);
        const auto value = [&](float held) {
          return ((held * (1 / Pieces::kStep) - Pieces::kOffset) - zero) * scale;
        };
        values[run][j % 2][2 * step + j / 2] =
            simt::PackBF16(value(simt::BF16Low(a[j])), value(simt::BF16High(a[j])));
      }
    }
  }
  simt::WaitForPrevious();
  TERRACE_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t row = tile * kTileRows + lane / 4 + 8 * half;
    if (row >= matrix.rows) continue;
    uint16_t* to =
        out + uint64_t{row} * matrix.columns + piece * Pieces::kColumns + lane % 4 * Pieces::kLaneStride;
    TERRACE_UNROLL
    for (uint32_t run = 0; run < Pieces::kRuns; ++run, to += Pieces::kRunStride) {
      const auto& v = values[run][half];
      if constexpr (kSteps == 1) {
        *reinterpret_cast<uint2*>(to) = {v[0], v[1]};
      } else {
        *reinterpret_cast<uint4*>(to) = {v[0], v[1], v[2], v[3]};
      }
    }
  }
}

// kSparse: each warp a piece. columns a multiple of 64.
TERRACE_KERNEL void TERRACE_BOUNDS(kDequantizeThreads, 1)
    SpreadSparseKernel(GpuMatrix matrix, uint16_t* out) {
  simt::LetNextStart();
  const uint32_t of_tile = matrix.columns / SparsePieces::kColumns, lane = simt::Lane();
  const uint32_t i = blockIdx.x * (blockDim.x / simt::kWarp) + simt::WarpIndex();
  const uint32_t tile = i / of_tile, piece = i % of_tile;
  if (tile * kTileRows >= matrix.rows) return simt::WaitForPrevious();
  const SparsePieces::Piece from = SparsePieces(matrix, tile, piece, lane).Load();
  simt::WaitForPrevious();
  const uint32_t row = tile * kTileRows + lane / 4;
  uint16_t* const to = out + uint64_t{row} * matrix.columns + piece * SparsePieces::kColumns +
                       lane % 4 * SparsePieces::kLaneStride;
  TERRACE_UNROLL
  for (uint32_t run = 0; run < SparsePieces::kRuns; ++run) {
    uint32_t a[4];
    SparsePieces::Fragment(from, run, 0, a);
    TERRACE_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
      if (row + 8 * half >= matrix.rows) continue;
      *reinterpret_cast<uint2*>(to + 8 * half * uint64_t{matrix.columns} + run * SparsePieces::kRunStride) = {
          a[half], a[half + 2]};
    }
  }
}

}  // namespace terrace
