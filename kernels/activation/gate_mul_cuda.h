// gate_mul_gpu.h on a CUDA device.
#pragma once

#include "kernels/activation/gate_mul_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Queues the kernel; nothing for no tokens. cudaErrorInvalidValue for a width that is no multiple of 8, for
// 2^34 values or more, and for no output. in and the outputs are aligned to 16 bytes.
cudaError_t GateMulCuda(const GpuGateMulArgs& args, CudaLaunch how);

}  // namespace terrace
