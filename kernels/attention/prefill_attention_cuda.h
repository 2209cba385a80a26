// Attention of prompts on a CUDA device: paged_attention_gpu.h, prefill.
#pragma once

#include <span>

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// A kernel that does it. With keys 0 the one of prefill_attention_device.h, which takes all there is; else
// one of hopper_prefill_device.h: a device of compute capability 9.0, keys and values of bf16, head_dim 64 or
// 128.
struct PrefillKernel {
  uint32_t keys = 0, stages = 0;  // positions of a tile, tiles in shared memory
  bool takes_turns = false, queries_in_registers = false;

  friend bool operator==(const PrefillKernel&, const PrefillKernel&) = default;
};

// All that there are for a head_dim, for tuning: that of keys 0, and behind it those for Hopper, the best
// first.
std::span<const PrefillKernel> PrefillKernels(uint32_t head_dim);

// What PrefillAttentionCuda takes: the best for Hopper where there is one, on the current device.
PrefillKernel DefaultPrefillKernel(const GpuAttentionArgs& args);

// Queues the attention of args.runs (prefill_runs.h); none launches nothing. head_dim 32, 64 or 128, a pool
// of bf16, f16 or int8 whose keys are up to 64 GiB a layer, scale above 0; all rows aligned to 16 bytes.
// cudaErrorInvalidValue for anything else, cudaErrorNotSupported for a kernel that the device or the
// arguments do not have.
cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, CudaLaunch launch);
cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, const PrefillKernel& kernel,
                                 CudaLaunch launch);

}  // namespace terrace
