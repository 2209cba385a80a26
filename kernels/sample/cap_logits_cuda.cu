#include "kernels/sample/cap_logits_cuda.h"

#include "kernels/launch_geometry.h"
#include "kernels/sample/cap_logits_device.h"

namespace terrace {

cudaError_t CapLogitsCuda(const GpuCapLogitsArgs& args, CudaLaunch how) {
  if (args.count % 4 != 0 || !(args.cap > 0)) return cudaErrorInvalidValue;
  if (args.count == 0) return cudaSuccess;
  const LaunchGeometry geometry = ElementwiseGeometry(args.count / 4);
  return LaunchCuda(how, CapLogitsKernel, dim3(geometry.blocks), geometry.threads, 0, args);
}

}  // namespace terrace
