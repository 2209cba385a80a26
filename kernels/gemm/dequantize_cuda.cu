#include "kernels/gemm/dequantize_cuda.h"

#include "kernels/gemm/dequantize_device.h"

namespace terrace {
namespace {

uint32_t BlocksOf(uint64_t threads) {
  return static_cast<uint32_t>((threads + kDequantizeThreads - 1) / kDequantizeThreads);
}

template <typename Pieces>
cudaError_t DequantizeTiles(const GpuMatrix& matrix, uint16_t* out, CudaLaunch how) {
  const uint64_t warps = uint64_t{TilesOf(matrix)} * (matrix.columns / Pieces::kColumns);
  return LaunchCuda(how, DequantizeTilesKernel<Pieces>, dim3(BlocksOf(warps * simt::kWarp)),
                    kDequantizeThreads, 0, matrix, out);
}

}  // namespace

cudaError_t DequantizeCuda(const GpuMatrix& matrix, uint16_t* out, CudaLaunch how) {
  if (matrix.rows == 0 || matrix.columns == 0 || matrix.columns % 64 != 0) return cudaErrorInvalidValue;
  switch (matrix.format) {
    case GpuFormat::kBF16:
      return cudaErrorInvalidValue;
    case GpuFormat::kE4M3:
      return LaunchCuda(how, DequantizeE4M3Kernel,
                        dim3(BlocksOf(uint64_t{matrix.rows} * (matrix.columns / 8))), kDequantizeThreads, 0,
                        matrix, out);
    case GpuFormat::kW4:
      return matrix.group == 32 ? DequantizeTiles<W4Pieces<2>>(matrix, out, how)
                                : DequantizeTiles<W4Pieces<1>>(matrix, out, how);
    case GpuFormat::kW8:
      return matrix.group == 16 ? DequantizeTiles<W8Pieces<2>>(matrix, out, how)
                                : DequantizeTiles<W8Pieces<1>>(matrix, out, how);
    case GpuFormat::kSparse: {
      const uint64_t warps = uint64_t{TilesOf(matrix)} * (matrix.columns / SparsePieces::kColumns);
      return LaunchCuda(how, SpreadSparseKernel, dim3(BlocksOf(warps * simt::kWarp)), kDequantizeThreads, 0,
                        matrix, out);
    }
  }
  return cudaErrorInvalidValue;
}

}  // namespace terrace
