// Queues quantize_rows_gpu.h's operation on a CUDA device. `args` holds device pointers, aligned to 16 bytes.
#pragma once

#include "kernels/launch_cuda.h"
#include "kernels/quant/quantize_rows_gpu.h"

namespace terrace {

// The launch's error; cudaErrorInvalidValue for a width that is not a multiple of 8, and for no codes.
cudaError_t QuantizeRowsCuda(const GpuQuantizeRowsArgs& args, CudaLaunch how);

}  // namespace terrace
