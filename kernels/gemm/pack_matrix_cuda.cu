#include "kernels/gemm/pack_matrix_cuda.h"

#include "kernels/gemm/pack_matrix_device.h"

namespace terrace {
namespace {

dim3 BlocksOf(uint64_t threads) {
  return dim3(static_cast<uint32_t>((threads + kPackThreads - 1) / kPackThreads));
}

}  // namespace

cudaError_t PackMatrixCuda(const GpuPackArgs& args, CudaLaunch how) {
  const GpuMatrix& matrix = args.to.matrix;
  if (matrix.columns == 0 || matrix.columns % kPackColumns != 0) return cudaErrorInvalidValue;
  if (args.row_count == 0) return cudaSuccess;
  const uint64_t tiles = (args.row_count + kTileRows - 1) / kTileRows;
  const auto pack_tiles = [&](auto kernel, uint32_t piece_columns) {
    return LaunchCuda(how, kernel, BlocksOf(tiles * (matrix.columns / piece_columns) * simt::kWarp),
                      kPackThreads, 0, args);
  };
  switch (matrix.format) {
    case GpuFormat::kBF16:
      return LaunchCuda(how, PackRowsKernel, BlocksOf(uint64_t{args.row_count} * (matrix.columns / 8)),
                        kPackThreads, 0, args);
    case GpuFormat::kE4M3:
      return LaunchCuda(how, PackE4M3Kernel, dim3(args.row_count), kPackThreads, 0, args);
    case GpuFormat::kW4:
      return pack_tiles(PackTilesKernel<true>, kW4PieceColumns);
    case GpuFormat::kW8:
      return pack_tiles(PackTilesKernel<false>, kW8PieceColumns);
    case GpuFormat::kSparse:
      if (matrix.columns % kSparsePieceColumns != 0) return cudaErrorInvalidValue;
      return pack_tiles(PackSparseKernel, kSparsePieceColumns);
  }
  return cudaErrorInvalidValue;
}

}  // namespace terrace
