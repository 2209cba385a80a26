// gemm of few tokens on a GPU: see kernels/gemm/stream_gemm_device.h.
#pragma once

#include <span>

#include "kernels/gemm/gpu_gemm.h"
#include "kernels/launch_cuda.h"

namespace terrace {

struct StreamGemmShape {
  uint32_t warps = 8;      // of a block: 4, 8 or 16. The order of sums depends on it
  uint32_t row_tiles = 1;  // of a block: 1 or 2. 2 reads x half as often; bits do not depend on it
  uint32_t per_sm = 0;     // blocks of a multiprocessor, which take row tiles in turns; 0: a block for each
};

// What may be fastest for so many tokens, for tuning; all warm x.
std::span<const StreamGemmShape> StreamGemmShapes(uint32_t tokens);

// Parts of the columns in which an output is summed where its bits matter (ADR 3): the default `warps`.
// Kernels that promise the same bits ask here. Whatever changes this changes the bits of every answer.
uint32_t StreamGemmParts(uint32_t rows, uint32_t columns, GpuFormat format);

StreamGemmShape DefaultStreamGemmShape(uint32_t rows, uint32_t columns, GpuFormat format, uint32_t tokens);

// Whether blocks of the current device have the shared memory that kSparse takes: not those of 8.6, 8.9 and
// 12.0. (They could have a ring of two slots, which was not timed.)
bool StreamGemmHasSparse();

// Any tokens, best up to 32: beyond, blocks of 32 tokens read the weights each, the later ones from L2. rows
// are a multiple of 16, columns of 64. Two row tiles become one where rows are no multiple of 32, and where
// sums of so many tokens leave no registers for them. With cudaErrorInvalidValue nothing was launched.
cudaError_t StreamGemmCuda(const GpuGemmArgs& args, const StreamGemmShape& shape, CudaLaunch how);

}  // namespace terrace
