// gemm of some tens of tokens with quantized weights on a GPU: see kernels/gemm/tile_gemm_device.h.
#pragma once

#include "kernels/gemm/tile_gemm_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Any tokens, best 17 to 64: beyond, blocks of 64 tokens read the weights each, the later ones from L2.
// Weights are kE4M3, kW4 or kW8; rows are a multiple of 16 and at least 32, columns of 64. Bits of an output
// depend on rows, columns and format. With cudaErrorInvalidValue nothing was launched. `scratch` may be empty
// where TileGemmPartialFloats is 0.
cudaError_t TileGemmCuda(const GpuGemmArgs& args, const TileGemmScratch& scratch, CudaLaunch how);

}  // namespace terrace
