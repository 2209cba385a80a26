#include "kernels/gemm/sparse_gemm_cuda.h"

#include "kernels/gemm/sparse_gemm_device.h"

namespace terrace {

cudaError_t SparseGemmCuda(const GpuGemmArgs& args, CudaLaunch how) {
  constexpr uint32_t kMostRowBlocks = 65535;
  const GpuMatrix& weights = args.weights;
  if (weights.format != GpuFormat::kSparse || weights.rows == 0 || weights.rows % kTileRows != 0 ||
      weights.columns == 0 || weights.columns % kSparsePieceColumns != 0) {
    return cudaErrorInvalidValue;
  }
  if (args.next_norm != nullptr || args.x_squares != nullptr) return cudaErrorInvalidValue;
  const uint32_t row_blocks = SparseGemmRowBlocks(weights.rows);
  if (row_blocks > kMostRowBlocks) return cudaErrorInvalidValue;
  static const cudaError_t raised = RaiseShared(SparseGemmKernel, kSparseSharedBytes);
  if (raised != cudaSuccess) return raised;
  if (args.tokens == 0) return cudaSuccess;
  return LaunchCuda(how, SparseGemmKernel, dim3(SparseGemmTokenBlocks(args.tokens), row_blocks),
                    kSparseThreads, kSparseSharedBytes, args);
}

}  // namespace terrace
