// gemm of tens to thousands of tokens with quantized weights on Hopper: see kernels/gemm/wide_gemm_device.h.
#pragma once

#include "kernels/gemm/wide_gemm_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Any tokens, best from 9 on. Weights are kE4M3, kW4 or kW8; rows are a multiple of 16, columns of 64. Bits
// of an output depend on columns, format, shape.splits and shape.scales_sums, never on other tokens.
// `scratch` may be empty where WideGemmPartialFloats is 0. With cudaErrorInvalidValue, and with
// cudaErrorNotSupported where the device has no warpgroups (HasWarpgroups), nothing was launched.
cudaError_t WideGemmCuda(const GpuGemmArgs& args, const WideGemmShape& shape, const TileGemmScratch& scratch,
                         CudaLaunch how);

}  // namespace terrace
