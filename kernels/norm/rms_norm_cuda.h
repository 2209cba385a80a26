// rms_norm_gpu.h on a CUDA device.
#pragma once

#include "kernels/launch_cuda.h"
#include "kernels/norm/rms_norm_gpu.h"

namespace terrace {

// Queues the kernel; nothing for no rows. cudaErrorInvalidValue for a width that the contract excludes and
// for no output. x, weight and the outputs are aligned to 16 bytes.
cudaError_t RmsNormCuda(const GpuRmsNormArgs& args, CudaLaunch how);

}  // namespace terrace
