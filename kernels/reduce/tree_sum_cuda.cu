#include "kernels/reduce/tree_sum_cuda.h"

#include "kernels/reduce/tree_sum_device.h"

namespace terrace {

cudaError_t TreeSumCuda(const GpuTreeSumArgs& args, CudaLaunch how) {
  const bool is_known = args.dtype == DType::kF32 || args.dtype == DType::kBF16 || args.dtype == DType::kF16;
  if (args.part_count == 0 || args.part_count > kMaxTreeParts || !is_known) return cudaErrorInvalidValue;
  if (args.count == 0) return cudaSuccess;
  return LaunchTreeSum(args, [&](uint32_t blocks, uint32_t threads, auto* kernel, const auto& arguments) {
    return LaunchCuda(how, kernel, dim3(blocks), threads, 0, arguments);
  });
}

}  // namespace terrace
