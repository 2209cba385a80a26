// gemm of many tokens on a GPU, with the bits of stream_gemm: see kernels/gemm/ordered_gemm_device.h.
#pragma once

#include "kernels/gemm/gpu_gemm.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Of a block, rows by tokens: 64 x 128 or 128 x 256. Bits do not depend on it.
enum class OrderedGemmTile : uint8_t { kSmall, kLarge };

OrderedGemmTile DefaultOrderedGemmTile(uint32_t rows, uint32_t tokens);

// An output has the bits that stream_gemm gives it with StreamGemmParts() warps. rows are a multiple of 16,
// columns of 64; no norm goes along. On devices whose blocks have too little shared memory for the large tile
// the small one takes its place. With cudaErrorInvalidValue nothing was launched.
cudaError_t OrderedGemmCuda(const GpuGemmArgs& args, OrderedGemmTile tile, CudaLaunch how);

}  // namespace terrace
