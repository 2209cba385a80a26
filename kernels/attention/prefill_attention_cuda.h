// Attention of prompts on a CUDA device: paged_attention_gpu.h, prefill.
#pragma once

#include <span>

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// A kernel that does it: that of prefill_attention_device.h, which takes all there is; or of
// hopper_prefill_device.h, which takes keys and values of bf16 and a head_dim of 64 or 128.
enum class PrefillKernel : uint8_t {
  kMma,
  kWgmma,
};

// Those that the current device has for such arguments, kMma first.
std::span<const PrefillKernel> PrefillKernels(const GpuAttentionArgs& args);

// What PrefillAttentionCuda takes: kWgmma where there is one.
PrefillKernel DefaultPrefillKernel(const GpuAttentionArgs& args);

// Shared memory that a block of kMma takes: a device whose blocks have less cannot run it.
size_t PrefillAttentionSharedBytes(const GpuAttentionArgs& args);

// Queues the attention of args.runs (prefill_runs.h); none launches nothing. head_dim 32, 64, 128 or 256, a
// pool that is not of f32, whose keys are up to 64 GiB a layer, scale above 0, softcap 0 or above; all rows
// aligned to 16 bytes. cudaErrorInvalidValue for anything else, cudaErrorNotSupported for a kernel that the
// device or the arguments do not have.
cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, CudaLaunch launch);
cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, PrefillKernel kernel, CudaLaunch launch);

}  // namespace terrace
