// Queues tree_sum_gpu.h's operation on a CUDA device. `args` holds device pointers.
#pragma once

#include "kernels/launch_cuda.h"
#include "kernels/reduce/tree_sum_gpu.h"

namespace terrace {

// The launch's error; cudaErrorInvalidValue for a number of parts or a dtype that the contract has not.
cudaError_t TreeSumCuda(const GpuTreeSumArgs& args, CudaLaunch how);

}  // namespace terrace
