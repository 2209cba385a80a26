// Launches kernels. With `follows` a kernel may start while the one before it on the stream still runs
// (programmatic dependent launch, sm_90): it calls simt::WaitForPrevious() before it touches what others
// write or read, so it can read weights ahead.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace terrace {

struct CudaLaunch {
  cudaStream_t stream = nullptr;
  bool follows = false;
};

// More than 48 KiB of shared memory need cudaFuncSetAttribute once before: RaiseShared.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchCuda(const CudaLaunch& how, void (*kernel)(Parameters...), dim3 grid, uint32_t threads,
                       size_t shared_bytes, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = how.stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = how.follows ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// Whether kernels of simt/warpgroup.h run on the current device. They are compiled for it alone.
inline bool HasWarpgroups() {
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
}

template <typename... Parameters>
cudaError_t RaiseShared(void (*kernel)(Parameters...), size_t shared_bytes) {
  if (shared_bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes));
}

}  // namespace terrace
