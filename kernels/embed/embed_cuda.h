// embed_gpu.h on a CUDA device.
#pragma once

#include "kernels/embed/embed_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Queues the kernel; nothing for no tokens. cudaErrorInvalidValue for a width that is no multiple of 8. table
// and out are aligned to 16 bytes.
cudaError_t EmbedCuda(const GpuEmbedArgs& args, CudaLaunch how);

}  // namespace terrace
