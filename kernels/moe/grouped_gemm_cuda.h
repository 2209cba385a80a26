// Queues grouped_gemm_gpu.h's operations on a CUDA device. `args` holds device pointers.
#pragma once

#include "kernels/launch_cuda.h"
#include "kernels/moe/grouped_gemm_gpu.h"

namespace terrace {

// Any tokens: each chunk reads the weights, those behind an expert's first from L2. rows are a multiple of
// 16, columns of 64. With cudaErrorInvalidValue nothing was launched.
cudaError_t GroupedGemmCuda(const GpuGroupedGemmArgs& args, CudaLaunch how);

// With cudaErrorInvalidValue, for a width that is no multiple of 4, nothing was launched.
cudaError_t CombineExpertsCuda(const GpuCombineExpertsArgs& args, CudaLaunch how);

}  // namespace terrace
