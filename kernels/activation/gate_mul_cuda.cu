#include "kernels/activation/gate_mul_cuda.h"

#include "kernels/activation/gate_mul_device.h"

namespace terrace {

cudaError_t GateMulCuda(const GpuGateMulArgs& args, CudaLaunch how) {
  if (args.width == 0 || args.width % kGateMulTile != 0) return cudaErrorInvalidValue;
  if (uint64_t{args.tokens} * (args.width / kGateMulTile) >= 1u << 31) return cudaErrorInvalidValue;
  if (args.out == nullptr && args.out_e4m3 == nullptr) return cudaErrorInvalidValue;
  if (args.out_e4m3 != nullptr && args.scales == nullptr) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  return LaunchGateMul(args, [&](uint32_t blocks, uint32_t threads, auto* kernel, const auto&... arguments) {
    return LaunchCuda(how, kernel, dim3(blocks), threads, 0, arguments...);
  });
}

}  // namespace terrace
