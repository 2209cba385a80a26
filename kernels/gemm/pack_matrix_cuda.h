// Queues the packing of staged rows on a CUDA device: see kernels/gemm/pack_matrix_device.h.
#pragma once

#include "kernels/gemm/pack_matrix_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// `args` holds device pointers. The launch's error; cudaErrorInvalidValue for columns that are no multiple of
// kPackColumns.
cudaError_t PackMatrixCuda(const GpuPackArgs& args, CudaLaunch how);

}  // namespace terrace
