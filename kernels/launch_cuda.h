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

// Of the current device; 0 when it cannot be asked.
inline int DeviceAttribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

// Whether kernels of simt/warpgroup.h run on the device that was current when this was first asked: a process
// has one. They are compiled for 9.0 alone.
inline bool HasWarpgroups() {
  static const bool has = DeviceAttribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
                          DeviceAttribute(cudaDevAttrComputeCapabilityMinor) == 0;
  return has;
}
// Likewise.
inline uint32_t Multiprocessors() {
  static const int count = DeviceAttribute(cudaDevAttrMultiProcessorCount);
  return count > 0 ? static_cast<uint32_t>(count) : 1;
}

template <typename... Parameters>
cudaError_t RaiseShared(void (*kernel)(Parameters...), size_t shared_bytes) {
  if (shared_bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes));
}

}  // namespace terrace
