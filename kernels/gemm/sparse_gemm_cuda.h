// gemm of many tokens with 2:4 weights on a GPU: see kernels/gemm/sparse_gemm_device.h.
#pragma once

#include "kernels/gemm/gpu_gemm.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Weights of kSparse, rows a multiple of 16, columns of 64; any tokens, best from some hundred on. No norms
// (gpu_gemm.h). With cudaErrorInvalidValue nothing was launched.
cudaError_t SparseGemmCuda(const GpuGemmArgs& args, CudaLaunch how);

}  // namespace terrace
