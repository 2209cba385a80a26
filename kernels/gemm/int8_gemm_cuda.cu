#include "kernels/gemm/int8_gemm_cuda.h"

#include "kernels/gemm/int8_gemm_device.h"

namespace terrace {

cudaError_t Int8GemmCuda(const GpuGemmArgs& args, const GpuInt8Rows& x, CudaLaunch how) {
  constexpr uint32_t kMostRowBlocks = 65535;
  const GpuMatrix& weights = args.weights;
  if (weights.format != GpuFormat::kW8 || !weights.has_row_scales || weights.rows == 0 ||
      weights.rows % kTileRows != 0 || weights.columns == 0 || weights.columns % kInt8StageColumns != 0 ||
      weights.columns > kMostInt8Columns) {
    return cudaErrorInvalidValue;
  }
  if (args.next_norm != nullptr || args.x_squares != nullptr) return cudaErrorInvalidValue;
  const uint32_t row_blocks = Int8GemmRowBlocks(weights.rows);
  if (row_blocks > kMostRowBlocks) return cudaErrorInvalidValue;
  static const cudaError_t raised = RaiseShared(Int8GemmKernel, kInt8SharedBytes);
  if (raised != cudaSuccess) return raised;
  if (args.tokens == 0) return cudaSuccess;
  return LaunchCuda(how, Int8GemmKernel, dim3(Int8GemmTokenBlocks(args.tokens), row_blocks), kInt8Threads,
                    kInt8SharedBytes, args, x);
}

}  // namespace terrace
