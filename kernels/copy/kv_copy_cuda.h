// kv_copy_gpu.h on a CUDA device.
#pragma once

#include "kernels/copy/kv_copy_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Queues the kernel; nothing where no bytes would move. Where both sides are aligned to 16 bytes it copies so
// many at a time, else 4.
cudaError_t KvCopyCuda(const GpuKvCopyArgs& args, CudaLaunch how);

}  // namespace terrace
