// cap_logits_gpu.h on a CUDA device.
#pragma once

#include "kernels/launch_cuda.h"
#include "kernels/sample/cap_logits_gpu.h"

namespace terrace {

// Queues the kernel; nothing for no logits. cudaErrorInvalidValue for what the contract excludes.
cudaError_t CapLogitsCuda(const GpuCapLogitsArgs& args, CudaLaunch how);

}  // namespace terrace
