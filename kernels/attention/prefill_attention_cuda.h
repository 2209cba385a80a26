// Attention of prompts on a CUDA device: paged_attention_gpu.h, prefill.
#pragma once

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Queues the attention of args.runs (prefill_runs.h); none launches nothing. head_dim 32, 64 or 128, a pool
// of bf16, f16 or int8 whose keys are up to 64 GiB a layer, scale above 0; all rows aligned to 16 bytes.
// cudaErrorInvalidValue for anything else.
cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, CudaLaunch launch);

}  // namespace terrace
