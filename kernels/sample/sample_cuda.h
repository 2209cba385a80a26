// sample_gpu.h on a CUDA device.
#pragma once

#include <cstddef>

#include "kernels/launch_cuda.h"
#include "kernels/sample/sample_gpu.h"

namespace terrace {

size_t GpuSampleScratchBytes(uint32_t rows, uint32_t vocab);

// Queues two kernels, four with args.samples; nothing for no rows. Which ones depends on args alone, not on
// what its pointers point to. cudaErrorInvalidValue for sizes that the contract excludes.
cudaError_t SampleCuda(const GpuSampleArgs& args, CudaLaunch how);

}  // namespace terrace
