#include "kernels/gemm/tile_gemm_cuda.h"

#include "kernels/gemm/tile_gemm_device.h"

namespace terrace {
namespace {

constexpr uint32_t kMostShared = 227 * 1024;  // of a block
constexpr uint32_t kMostRowBlocks = 65535;

template <typename Pieces>
constexpr uint32_t MostShared(uint32_t token_tiles) {  // of what TileGemmShapeOf returns
  uint32_t most = 0;
  for (uint32_t row_warps = 1; row_warps <= 8; ++row_warps) {
    const TileGemmShape shape{.row_warps = row_warps, .log2_parts = row_warps <= 4 ? 2u : 1u};
    most = std::max(most, TileGemmSharedBytes<Pieces>(shape, token_tiles));
  }
  return most;
}

template <typename Pieces, uint32_t kTokenTiles>
cudaError_t LaunchTiles(const GpuGemmArgs& args, const TileGemmScratch& scratch, CudaLaunch how) {
  const auto kernel = TileGemmKernel<Pieces, kTokenTiles>;
  static_assert(MostShared<Pieces>(kTokenTiles) <= kMostShared);
  static const cudaError_t raised = RaiseShared(kernel, MostShared<Pieces>(kTokenTiles));
  if (raised != cudaSuccess) return raised;
  const TileGemmShape shape = TileGemmShapeOf(args.weights.rows, args.weights.columns);
  const uint32_t row_blocks = TileGemmRowBlocks(args.weights.rows, shape.row_warps);
  const bool has_scratch = scratch.partials != nullptr && scratch.arrived != nullptr;
  if (row_blocks > kMostRowBlocks || (shape.splits > 1 && !has_scratch)) return cudaErrorInvalidValue;
  return LaunchCuda(how, kernel, dim3(TileGemmTokenBlocks(args.tokens), shape.splits, row_blocks),
                    (shape.row_warps << shape.log2_parts) * simt::kWarp,
                    TileGemmSharedBytes<Pieces>(shape, kTokenTiles), args, scratch, shape);
}

template <typename Pieces>
cudaError_t LaunchTokens(const GpuGemmArgs& args, const TileGemmScratch& scratch, CudaLaunch how) {
  return TileGemmTokens(args.tokens) == 32 ? LaunchTiles<Pieces, 4>(args, scratch, how)
                                           : LaunchTiles<Pieces, 8>(args, scratch, how);
}

}  // namespace

cudaError_t TileGemmCuda(const GpuGemmArgs& args, const TileGemmScratch& scratch, CudaLaunch how) {
  const GpuMatrix& weights = args.weights;
  if (weights.rows < kTileWarpRows || weights.rows % kTileRows != 0 || weights.columns == 0 ||
      weights.columns % kTileUnitColumns != 0) {
    return cudaErrorInvalidValue;
  }
  if (weights.format == GpuFormat::kBF16 || weights.format == GpuFormat::kSparse)
    return cudaErrorInvalidValue;
  if (args.next_norm != nullptr || args.x_squares != nullptr) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  switch (weights.format) {
    case GpuFormat::kBF16:
    case GpuFormat::kSparse:
      break;
    case GpuFormat::kE4M3:
      return LaunchTokens<E4M3Pieces>(args, scratch, how);
    case GpuFormat::kW4:
      return weights.group == 32 ? LaunchTokens<W4Pieces<2>>(args, scratch, how)
                                 : LaunchTokens<W4Pieces<1>>(args, scratch, how);
    case GpuFormat::kW8:
      return weights.group == 16 ? LaunchTokens<W8Pieces<2>>(args, scratch, how)
                                 : LaunchTokens<W8Pieces<1>>(args, scratch, how);
  }
  return cudaErrorInvalidValue;
}

}  // namespace terrace
