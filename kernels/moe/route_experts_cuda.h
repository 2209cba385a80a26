// Queues route_experts_gpu.h's operation on a CUDA device. `args` holds device pointers.
#pragma once

#include "kernels/launch_cuda.h"
#include "kernels/moe/route_experts_gpu.h"

namespace terrace {

// The launches' first error; cudaErrorInvalidValue, and nothing was launched, for sizes that the contract has
// not.
cudaError_t RouteExpertsCuda(const GpuRouteExpertsArgs& args, CudaLaunch how);

}  // namespace terrace
