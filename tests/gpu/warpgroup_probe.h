// One product by kernels/simt/warpgroup.h on a GPU: what the emulator says a wgmma does against what it does.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace terrace {

inline constexpr uint32_t kProbeRows = 64, kProbeColumns = 128, kProbeDepth = 64;

// out[64][128] f32 += a[64][64] * b[64][128], bf16, row-major, device memory. The tile of b is filled by a
// bulk copy where `transposed` (b of WgmmaTransposed), else by CpAsync4. cudaErrorNotSupported but on sm_90.
cudaError_t ProbeWgmma(const uint16_t* a, const uint16_t* b, float* out, bool of_registers, bool transposed,
                       cudaStream_t stream);
// The same by mma.m16n8k16, in the same order of k.
cudaError_t ProbeMma(const uint16_t* a, const uint16_t* b, float* out, cudaStream_t stream);

}  // namespace terrace
