// rope_kv_gpu.h on a CUDA device.
#pragma once

#include "kernels/launch_cuda.h"
#include "kernels/rope/rope_kv_gpu.h"

namespace terrace {

// Queues the kernel; nothing for no tokens. cudaErrorInvalidValue for what the contract excludes. qkv, cos,
// sin, the pool's rows, bias and norms are aligned to 16 bytes.
cudaError_t RopeKvCuda(const GpuRopeKvArgs& args, CudaLaunch how, const GpuHeadAdjustments& adjustments = {});

}  // namespace terrace
