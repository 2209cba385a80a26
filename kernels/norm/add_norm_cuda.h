// add_norm_gpu.h on a CUDA device.
#pragma once

#include "kernels/launch_cuda.h"
#include "kernels/norm/add_norm_gpu.h"

namespace terrace {

// Queues the kernel; nothing for no rows. cudaErrorInvalidValue for a width that the contract excludes. x,
// weight and hidden are aligned to 16 bytes.
cudaError_t AddNormCuda(const GpuAddNormArgs& args, CudaLaunch how);

}  // namespace terrace
