#include "kernels/gemm/stream_gemm_cuda.h"

#include <algorithm>
#include <bit>
#include <iterator>

#include "kernels/gemm/stream_gemm_device.h"

namespace terrace {
namespace {

// Those in turns last. Deeper rings than kStreamDepth did not pay.
constexpr StreamGemmShape kShapes[] = {{4, 1, 0},  {8, 1, 0},  {16, 1, 0}, {8, 2, 0},
                                       {16, 2, 0}, {16, 1, 1}, {16, 2, 1}};
constexpr size_t kShapesInTurns = 2;
constexpr uint32_t kTokenTile = 8;
constexpr uint32_t kMostRowBlocks = 65535;

template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles, bool kShares>
cudaError_t LaunchKernel(const GpuGemmArgs& args, const StreamGemmShape& shape, CudaLaunch how) {
  const auto kernel = StreamGemmKernel<Pieces, kTokenTiles, kRowTiles, kShares>;
  constexpr uint32_t kWarpBytes = kStreamWarpBytes<Pieces, kTokenTiles, kRowTiles, kShares>;
  static const cudaError_t raised = RaiseShared(kernel, kMostStreamWarps * kWarpBytes);
  if (raised != cudaSuccess) return raised;
  uint32_t row_blocks = args.weights.rows / (kTileRows * kRowTiles);
  if (kShares) row_blocks = std::min(row_blocks, shape.per_sm * Multiprocessors());
  if (row_blocks > kMostRowBlocks) return cudaErrorInvalidValue;
  const uint32_t token_blocks = (args.tokens + kTokenTile * kTokenTiles - 1) / (kTokenTile * kTokenTiles);
  return LaunchCuda(how, kernel, dim3(token_blocks, row_blocks), shape.warps * simt::kWarp,
                    shape.warps * kWarpBytes, args, static_cast<uint32_t>(std::countr_zero(shape.warps)));
}

template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles>
cudaError_t Launch(const GpuGemmArgs& args, const StreamGemmShape& shape, CudaLaunch how) {
  if constexpr (kTokenTiles == 1) {
    if (shape.per_sm > 0) {
      const cudaError_t error = LaunchKernel<Pieces, kTokenTiles, kRowTiles, true>(args, shape, how);
      if (error != cudaErrorInvalidValue) return error;
      cudaGetLastError();  // blocks have too little shared memory for that, as on 8.6: the same bits below
    }
  }
  return LaunchKernel<Pieces, kTokenTiles, kRowTiles, false>(args, shape, how);
}

template <typename Pieces, uint32_t kTokenTiles>
cudaError_t LaunchTiles(const GpuGemmArgs& args, const StreamGemmShape& shape, CudaLaunch how) {
  if constexpr (kStreamHasTwoRowTiles<Pieces, kTokenTiles>) {
    if (shape.row_tiles == 2 && args.weights.rows % (2 * kTileRows) == 0) {
      return Launch<Pieces, kTokenTiles, 2>(args, shape, how);
    }
  }
  return Launch<Pieces, kTokenTiles, 1>(args, shape, how);
}

template <typename Pieces>
cudaError_t LaunchTokens(const GpuGemmArgs& args, const StreamGemmShape& shape, CudaLaunch how) {
  if (args.tokens <= kTokenTile) return LaunchTiles<Pieces, 1>(args, shape, how);
  if (args.tokens <= 2 * kTokenTile) return LaunchTiles<Pieces, 2>(args, shape, how);
  return LaunchTiles<Pieces, 4>(args, shape, how);
}

}  // namespace

std::span<const StreamGemmShape> StreamGemmShapes(uint32_t tokens) {
  return std::span(kShapes).first(std::size(kShapes) - (tokens <= kTokenTile ? 0 : kShapesInTurns));
}

bool StreamGemmHasSparse() {
  constexpr uint32_t kBytes = kMostStreamWarps * kStreamWarpBytes<SparsePieces, 1, 1, false>;
  return DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= static_cast<int>(kBytes);
}

uint32_t StreamGemmParts(uint32_t rows, uint32_t columns, GpuFormat format) {
  // Enough warps on each of some 132 multiprocessors, but for each at least four pieces, to have loads under
  // way.
  constexpr uint32_t kFewTiles = 160;
  const bool is_short = format == GpuFormat::kBF16 || format == GpuFormat::kW8;
  const uint32_t most_warps = columns / (is_short ? 128 : 256);
  static_assert(BF16Pieces::kColumns == 32 && W8Pieces<1>::kColumns == 32);
  static_assert(E4M3Pieces::kColumns == 64 && W4Pieces<1>::kColumns == 64 && SparsePieces::kColumns == 64);
  uint32_t warps = rows / kTileRows < kFewTiles ? kMostStreamWarps : 8;
  while (warps > kLeastStreamWarps && warps > most_warps) warps /= 2;
  return warps;
}

StreamGemmShape DefaultStreamGemmShape(uint32_t rows, uint32_t columns, GpuFormat format, uint32_t tokens) {
  constexpr uint32_t kTilesForTwo = 2 * 264;
  StreamGemmShape shape{.warps = StreamGemmParts(rows, columns, format), .row_tiles = 1};
  if (tokens > kTokenTile && rows / kTileRows >= kTilesForTwo) shape.row_tiles = 2;
  if (tokens <= kTokenTile && shape.warps == kMostStreamWarps) shape.per_sm = 1;
  return shape;
}

cudaError_t StreamGemmCuda(const GpuGemmArgs& args, const StreamGemmShape& shape, CudaLaunch how) {
  const GpuMatrix& weights = args.weights;
  const bool is_known = (shape.warps == 4 || shape.warps == 8 || shape.warps == 16) &&
                        (shape.row_tiles == 1 || shape.row_tiles == 2);
  if (!is_known || weights.rows == 0 || weights.rows % kTileRows != 0 || weights.columns == 0 ||
      weights.columns % 64 != 0) {
    return cudaErrorInvalidValue;
  }
  if (args.tokens == 0) return cudaSuccess;
  const bool has_norm = args.next_norm != nullptr || args.x_squares != nullptr;
  if (has_norm && args.tokens > kMostNormTokens) return cudaErrorInvalidValue;
  if (args.next_norm != nullptr && args.kind != GpuGemmOut::kAddF32) return cudaErrorInvalidValue;
  switch (weights.format) {
    case GpuFormat::kBF16:
      return LaunchTokens<BF16Pieces>(args, shape, how);
    case GpuFormat::kE4M3:
      return LaunchTokens<E4M3Pieces>(args, shape, how);
    case GpuFormat::kW4:
      return weights.group == 32 ? LaunchTokens<W4Pieces<2>>(args, shape, how)
                                 : LaunchTokens<W4Pieces<1>>(args, shape, how);
    case GpuFormat::kW8:
      return weights.group == 16 ? LaunchTokens<W8Pieces<2>>(args, shape, how)
                                 : LaunchTokens<W8Pieces<1>>(args, shape, how);
    case GpuFormat::kSparse:
      return LaunchTokens<SparsePieces>(args, shape, how);
  }
  return cudaErrorInvalidValue;
}

}  // namespace terrace
