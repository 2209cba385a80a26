#include "kernels/moe/grouped_gemm_cuda.h"

#include <bit>

#include "kernels/gemm/stream_gemm_cuda.h"
#include "kernels/moe/grouped_gemm_device.h"

namespace terrace {

cudaError_t GroupedGemmCuda(const GpuGroupedGemmArgs& args, CudaLaunch how) {
  const GpuMatrix& weights = args.weights;
  const uint32_t chunk = args.groups.chunk_tokens;
  const bool is_known = IsChunkTokens(chunk) && args.kind != GpuGemmOut::kAddF32;
  if (!is_known || weights.rows == 0 || weights.rows % kTileRows != 0 || weights.columns == 0 ||
      weights.columns % 64 != 0) {
    return cudaErrorInvalidValue;
  }
  if (args.groups.chunk_count == 0) return cudaSuccess;
  const StreamGemmShape shape = DefaultStreamGemmShape(weights.rows, weights.columns, weights.format, chunk);
  return LaunchGroupedGemm(
      args, shape.warps, shape.row_tiles, [&](auto* kernel, const GroupedLaunch& launch) {
        constexpr uint32_t kMostRowBlocks = 65535;
        if (launch.row_blocks > kMostRowBlocks) return cudaErrorInvalidValue;
        const cudaError_t raised = RaiseShared(kernel, launch.shared);
        if (raised != cudaSuccess) return raised;
        return LaunchCuda(how, kernel, dim3(args.groups.chunk_count, launch.row_blocks), launch.threads,
                          launch.shared, args, static_cast<uint32_t>(std::countr_zero(shape.warps)));
      });
}

cudaError_t CombineExpertsCuda(const GpuCombineExpertsArgs& args, CudaLaunch how) {
  if (args.width % 4 != 0) return cudaErrorInvalidValue;
  const LaunchGeometry grid = ElementwiseGeometry(size_t{args.tokens} * (args.width / 4));
  if (grid.blocks == 0) return cudaSuccess;
  return LaunchCuda(how, CombineExpertsKernel, dim3(grid.blocks), grid.threads, 0, args);
}

}  // namespace terrace
