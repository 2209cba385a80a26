#include "kernels/norm/add_norm_cuda.h"

#include "kernels/norm/add_norm_device.h"

namespace terrace {

cudaError_t AddNormCuda(const GpuAddNormArgs& args, CudaLaunch how) {
  if (args.width == 0 || args.width % 8 != 0 || args.width > 131072) return cudaErrorInvalidValue;
  if (args.count == 0) return cudaSuccess;
  return LaunchAddNorm(args, [&](void (*kernel)(GpuAddNormArgs), uint32_t threads) {
    return LaunchCuda(how, kernel, dim3(args.count), threads, 0, args);
  });
}

}  // namespace terrace
