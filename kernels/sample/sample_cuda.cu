#include "kernels/sample/sample_cuda.h"

#include "kernels/sample/sample_device.h"

namespace terrace {

size_t GpuSampleScratchBytes(uint32_t rows, uint32_t vocab) {
  size_t bytes;
  SampleScratchAt(nullptr, rows, vocab, bytes);
  return bytes;
}

cudaError_t SampleCuda(const GpuSampleArgs& args, CudaLaunch how) {
  if (!IsSampleSupported(args)) return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  if (args.samples) {
    const cudaError_t raised = RaiseShared(SampleChooseKernel<true>, kSampleChooseShared);
    if (raised != cudaSuccess) return raised;
  }
  cudaError_t error = cudaSuccess;
  LaunchSample(args, [&](void (*kernel)(GpuSampleArgs, SampleScratch), uint32_t parts, uint32_t rows,
                         uint32_t threads, size_t shared, const GpuSampleArgs& a,
                         const SampleScratch& scratch) {
    error = LaunchCuda(how, kernel, parts > 0 ? dim3(parts, rows) : dim3(rows), threads, shared, a, scratch);
    return error == cudaSuccess;
  });
  return error;
}

}  // namespace terrace
