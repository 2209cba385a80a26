#include "kernels/attention/decode_attention_cuda.h"

#include "kernels/attention/decode_attention_device.h"

namespace terrace {
namespace {

bool IsAligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

bool IsDecodable(const GpuAttentionArgs& a) {
  constexpr uint32_t kMostOfGrid = 65535;
  const GpuBatch& batch = a.batch;
  const uint32_t head_dim = batch.head_dim;
  if (head_dim != 32 && head_dim != 64 && head_dim != 128 && head_dim != 256) return false;
  if (batch.kv_heads == 0 || batch.kv_heads > kMostOfGrid || a.count > kMostOfGrid) return false;
  if (a.heads == 0 || a.heads % batch.kv_heads != 0) return false;
  if (a.heads / batch.kv_heads > GpuMostGroupHeads(head_dim)) return false;
  if (a.kv.dtype == KvDType::kF32 || batch.log2_block_tokens < 4 || a.most_spans == 0) return false;
  for (const KvRows& rows : {a.kv.keys, a.kv.values}) {
    if (!IsAligned(rows.data) ||
        (HasScales(a.kv.dtype) && (rows.scales == nullptr || !IsAligned(rows.scales)))) {
      return false;
    }
  }
  if (a.q_pitch % 8 != 0 || !IsAligned(a.q) || !IsAligned(a.out)) return false;
  if (!(a.softcap >= 0)) return false;
  if (a.cos != nullptr &&
      (!GpuDecodeHasRope(head_dim) || decode_attention::HasLimits(a) || a.sin == nullptr ||
       !IsAligned(a.cos) || !IsAligned(a.sin) || a.q_pitch < (a.heads + 2 * batch.kv_heads) * head_dim)) {
    return false;
  }
  return a.most_spans == 1 || (a.partials != nullptr && IsAligned(a.partials) && a.arrived != nullptr);
}

cudaError_t DecodeAttentionCuda(const GpuAttentionArgs& args, CudaLaunch how) {
  if (args.count == 0) return cudaSuccess;
  if (!IsDecodable(args)) return cudaErrorInvalidValue;
  const auto launch = [&](auto* kernel, uint32_t parts, uint32_t threads, size_t shared_bytes, auto... more) {
    if (const cudaError_t error = RaiseShared(kernel, shared_bytes); error != cudaSuccess) return error;
    const dim3 grid(parts, args.batch.kv_heads, args.count);
    return LaunchCuda(how, kernel, grid, threads, shared_bytes, args, more...);
  };
  return decode_attention::LaunchDecodeAttention(args, launch);
}

}  // namespace terrace
