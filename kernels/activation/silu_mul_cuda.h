// SiLU times up on a CUDA device. `args` holds device pointers.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/activation/silu_mul.h"

namespace terrace {

// Queues the kernel on `stream`; the error is the launch's. An empty `args` launches nothing.
cudaError_t SiluMulCuda(const SiluMulArgs& args, cudaStream_t stream);

}  // namespace terrace
