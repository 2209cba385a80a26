// gemm of many tokens with int8 weights and int8 activations on a GPU: see kernels/gemm/int8_gemm_device.h.
#pragma once

#include "kernels/gemm/gpu_gemm.h"
#include "kernels/gemm/int8_gemm_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Weights of kW8 with has_row_scales, rows a multiple of 16, columns of 64 and at most 131,072; any tokens,
// best from some hundred on. args.x is not read. No norms (gpu_gemm.h). With cudaErrorInvalidValue nothing
// was launched.
cudaError_t Int8GemmCuda(const GpuGemmArgs& args, const GpuInt8Rows& x, CudaLaunch how);

}  // namespace terrace
