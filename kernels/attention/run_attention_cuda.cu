#include "kernels/attention/run_attention_cuda.h"

#include "kernels/attention/decode_attention_cuda.h"
#include "kernels/attention/run_attention_device.h"

namespace terrace {

cudaError_t RunAttentionCuda(const GpuAttentionArgs& args, CudaLaunch how) {
  if (args.run_count == 0) return cudaSuccess;
  constexpr uint32_t kMostOfGrid = 65535;
  GpuAttentionArgs decoded = args;  // what is not looked at is well
  decoded.count = 0;
  decoded.most_spans = 1;
  if (args.run_count > kMostOfGrid || args.runs == nullptr || !IsDecodable(decoded) ||
      args.batch.head_dim > kRunAttentionMostHeadDim) {
    return cudaErrorInvalidValue;
  }
  const auto launch = [&](auto* kernel, uint32_t blocks, uint32_t threads, size_t shared_bytes,
                          uint32_t heads) {
    if (const cudaError_t error = RaiseShared(kernel, shared_bytes); error != cudaSuccess) return error;
    const dim3 grid(blocks, args.batch.kv_heads, args.run_count);
    return LaunchCuda(how, kernel, grid, threads, shared_bytes, args, heads);
  };
  return run_attention::LaunchRunAttention(args, launch);
}

size_t RunAttentionSharedBytes(const GpuAttentionArgs& args) {
  return run_attention::LaunchRunAttention(
      args, [](auto*, uint32_t, uint32_t, size_t shared_bytes, uint32_t) { return shared_bytes; });
}

}  // namespace terrace
