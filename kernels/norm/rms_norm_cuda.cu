#include "kernels/norm/rms_norm_cuda.h"

#include "kernels/norm/rms_norm_device.h"

namespace terrace {

cudaError_t RmsNormCuda(const GpuRmsNormArgs& args, CudaLaunch how) {
  if (args.width == 0 || args.width % 8 != 0 || args.width > 131072) return cudaErrorInvalidValue;
  const bool has_codes = args.codes != RowCodes::kNone;
  if (!has_codes && args.out == nullptr) return cudaErrorInvalidValue;
  if (has_codes && (args.out_codes == nullptr || args.scales == nullptr)) return cudaErrorInvalidValue;
  if (args.count == 0) return cudaSuccess;
  return LaunchRmsNorm(args, [&](void (*kernel)(GpuRmsNormArgs), uint32_t threads) {
    return LaunchCuda(how, kernel, dim3(args.count), threads, 0, args);
  });
}

}  // namespace terrace
