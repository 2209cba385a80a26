#include "kernels/gemm/stream_gemm_cuda.h"

#include <bit>

#include "kernels/gemm/stream_gemm_device.h"

namespace terrace {
namespace {

constexpr StreamGemmShape kShapes[] = {{4, 1}, {8, 1}, {16, 1}, {4, 2}, {8, 2}, {16, 2}};
constexpr uint32_t kMostRowBlocks = 65535;

template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles>
cudaError_t Launch(const GpuGemmArgs& args, uint32_t warps, CudaLaunch how) {
  const auto kernel = StreamGemmKernel<Pieces, kTokenTiles, kRowTiles>;
  constexpr uint32_t kRing = kStreamRingBytes<Pieces>;
  static const cudaError_t raised = RaiseShared(kernel, kMostStreamWarps * kRing);
  if (raised != cudaSuccess) return raised;
  const uint32_t row_blocks = args.weights.rows / (kTileRows * kRowTiles);
  if (row_blocks > kMostRowBlocks) return cudaErrorInvalidValue;
  const uint32_t token_blocks = (args.tokens + 8 * kTokenTiles - 1) / (8 * kTokenTiles);
  return LaunchCuda(how, kernel, dim3(token_blocks, row_blocks), warps * simt::kWarp, warps * kRing, args,
                    static_cast<uint32_t>(std::countr_zero(warps)));
}

template <typename Pieces, uint32_t kTokenTiles>
cudaError_t LaunchTiles(const GpuGemmArgs& args, const StreamGemmShape& shape, CudaLaunch how) {
  if constexpr (kStreamHasTwoRowTiles<Pieces, kTokenTiles>) {
    if (shape.row_tiles == 2 && args.weights.rows % (2 * kTileRows) == 0) {
      return Launch<Pieces, kTokenTiles, 2>(args, shape.warps, how);
    }
  }
  return Launch<Pieces, kTokenTiles, 1>(args, shape.warps, how);
}

template <typename Pieces>
cudaError_t LaunchTokens(const GpuGemmArgs& args, const StreamGemmShape& shape, CudaLaunch how) {
  if (args.tokens <= 8) return LaunchTiles<Pieces, 1>(args, shape, how);
  if (args.tokens <= 16) return LaunchTiles<Pieces, 2>(args, shape, how);
  return LaunchTiles<Pieces, 4>(args, shape, how);
}

}  // namespace

std::span<const StreamGemmShape> StreamGemmShapes() { return kShapes; }

StreamGemmShape DefaultStreamGemmShape(uint32_t rows, uint32_t columns, GpuFormat format, uint32_t tokens) {
  // Enough warps on each of some 132 multiprocessors, but for each at least four pieces, to have loads under
  // way.
  constexpr uint32_t kFewTiles = 160, kTilesForTwo = 2 * 264;
  const bool is_short = format == GpuFormat::kBF16 || format == GpuFormat::kW8;
  const uint32_t tiles = rows / kTileRows, most_warps = columns / (is_short ? 128 : 256);
  static_assert(BF16Pieces::kColumns == 32 && W8Pieces<1>::kColumns == 32);
  static_assert(E4M3Pieces::kColumns == 64 && W4Pieces<1>::kColumns == 64);
  StreamGemmShape shape{.warps = tiles < kFewTiles ? 16u : 8u, .row_tiles = 1};
  while (shape.warps > 4 && shape.warps > most_warps) shape.warps /= 2;
  if (tokens > 8 && tiles >= kTilesForTwo) shape.row_tiles = 2;
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
  }
  return cudaErrorInvalidValue;
}

}  // namespace terrace
