#include "kernels/copy/kv_copy_cuda.h"

#include "kernels/copy/kv_copy_device.h"

namespace terrace {

cudaError_t KvCopyCuda(const GpuKvCopyArgs& args, CudaLaunch how) {
  if (args.from >= args.blocks || args.to >= args.blocks) return cudaErrorInvalidValue;
  if (args.part_count == 0 || args.kv_heads == 0 || args.rows == 0) return cudaSuccess;
  return LaunchCuda(how, KvCopyKernel, dim3(args.part_count, args.kv_heads), kKvCopyThreads, 0, args);
}

}  // namespace terrace
