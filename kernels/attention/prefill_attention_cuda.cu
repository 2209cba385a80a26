#include "kernels/attention/prefill_attention_cuda.h"
#include "kernels/attention/prefill_attention_device.h"

namespace terrace {
namespace {

// All of it that there is for shared memory, so that as many blocks as registers allow find room.
cudaError_t Prepare(void (*kernel)(GpuAttentionArgs), size_t shared_bytes) {
  const cudaError_t raised = RaiseShared(kernel, shared_bytes);
  if (raised != cudaSuccess) return raised;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

template <KvDType kDType, uint32_t kHeadDim>
cudaError_t Launch(const GpuAttentionArgs& args, const CudaLaunch& launch) {
  constexpr auto kernel = PrefillAttentionKernel<kDType, kHeadDim>;
  constexpr size_t kBytes = prefill::Layout<kDType, kHeadDim>::kBytes;
  static const cudaError_t prepared = Prepare(kernel, kBytes);
  if (prepared != cudaSuccess) return prepared;
  return LaunchCuda(launch, kernel, dim3(args.heads, args.run_count), prefill::kThreads, kBytes, args);
}

template <KvDType kDType>
cudaError_t LaunchOfHeadDim(const GpuAttentionArgs& args, const CudaLaunch& launch) {
  switch (args.batch.head_dim) {
    case 32:
      return Launch<kDType, 32>(args, launch);
    case 64:
      return Launch<kDType, 64>(args, launch);
    case 128:
      return Launch<kDType, 128>(args, launch);
    default:
      return cudaErrorInvalidValue;
  }
}

// The kernel numbers 16-byte chunks of a layer's keys in 32 bits.
bool IsSmallEnough(const GpuAttentionArgs& args) {
  const uint64_t rows = (uint64_t{args.batch.kv_heads} * args.batch.blocks) << args.batch.log2_block_tokens;
  return rows * args.batch.head_dim * KvElementBytes(args.kv.dtype) / 16 <= uint64_t{1} << 32;
}

bool IsAligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, CudaLaunch launch) {
  if (args.run_count == 0) return cudaSuccess;
  constexpr uint32_t kMostGridRows = 65535;
  if (args.run_count > kMostGridRows || args.batch.kv_heads == 0 || args.heads == 0 ||
      args.heads % args.batch.kv_heads != 0 || args.batch.log2_block_tokens < 4 || !(args.scale > 0) ||
      !IsSmallEnough(args) || args.q_pitch % 8 != 0 || !IsAligned(args.q) || !IsAligned(args.out) ||
      !IsAligned(args.kv.keys.data) || !IsAligned(args.kv.values.data) || !IsAligned(args.kv.keys.scales) ||
      !IsAligned(args.kv.values.scales)) {
    return cudaErrorInvalidValue;
  }
  switch (args.kv.dtype) {
    case KvDType::kBF16:
      return LaunchOfHeadDim<KvDType::kBF16>(args, launch);
    case KvDType::kF16:
      return LaunchOfHeadDim<KvDType::kF16>(args, launch);
    case KvDType::kInt8:
      return LaunchOfHeadDim<KvDType::kInt8>(args, launch);
    case KvDType::kF32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace terrace
