#include "kernels/embed/embed_cuda.h"

#include "kernels/embed/embed_device.h"

namespace terrace {

cudaError_t EmbedCuda(const GpuEmbedArgs& args, CudaLaunch how) {
  if (args.width == 0 || args.width % 8 != 0) return cudaErrorInvalidValue;
  if (args.count == 0) return cudaSuccess;
  const dim3 grid(args.count, (args.width + kEmbedColumns - 1) / kEmbedColumns);
  return LaunchCuda(how, EmbedKernel, grid, kEmbedThreads, 0, args);
}

}  // namespace terrace
