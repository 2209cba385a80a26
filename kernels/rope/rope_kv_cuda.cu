#include "kernels/rope/rope_kv_cuda.h"

#include "kernels/rope/rope_kv_device.h"

namespace terrace {

cudaError_t RopeKvCuda(const GpuRopeKvArgs& args, CudaLaunch how, const GpuHeadAdjustments& adjustments) {
  const uint32_t head_dim = args.batch.head_dim;
  if (head_dim == 0 || head_dim % 16 != 0 || head_dim > kRopeMostHeadDim) return cudaErrorInvalidValue;
  if (args.kv.dtype == KvDType::kF32 || args.batch.kv_heads == 0) return cudaErrorInvalidValue;
  if (args.batch.tokens == 0) return cudaSuccess;
  return LaunchRopeKv(
      args, adjustments, [&](uint32_t blocks, uint32_t threads, auto* kernel, const auto&... arguments) {
        return LaunchCuda(how, kernel, dim3(args.batch.tokens, blocks), threads, 0, arguments...);
      });
}

}  // namespace terrace
