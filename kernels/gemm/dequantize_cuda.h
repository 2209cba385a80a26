// A matrix of codes as bf16: see kernels/gemm/dequantize_device.h.
#pragma once

#include "kernels/gemm/gpu_matrix.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// out, [rows, columns], each value rounded once (of kSparse exact); columns a multiple of 64. Not for kBF16,
// which is that already.
cudaError_t DequantizeCuda(const GpuMatrix& matrix, uint16_t* out, CudaLaunch how);

}  // namespace terrace
