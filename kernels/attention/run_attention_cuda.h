// Attention of runs of tokens on a CUDA device with the bits of decode attention.
#pragma once

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Decode attention has larger heads, too.
inline constexpr uint32_t kRunAttentionMostHeadDim = 128;

// Queues attention of the tokens of args.runs; nothing for no runs. A token's result is, to the bit, what
// DecodeAttentionCuda makes of it. Limits are DecodeAttentionCuda's, with heads of at most
// kRunAttentionMostHeadDim, and at most 65535 runs, of at most kGpuQueryTile tokens each; first, count,
// most_spans, partials and arrived are not looked at.
cudaError_t RunAttentionCuda(const GpuAttentionArgs& args, CudaLaunch how);

// Shared memory that a block takes, for heads that it has: a device whose blocks have less cannot run it.
size_t RunAttentionSharedBytes(const GpuAttentionArgs& args);

}  // namespace terrace
