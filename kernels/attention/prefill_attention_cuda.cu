#include "kernels/attention/prefill_attention_cuda.h"

#include <algorithm>

#include "kernels/attention/hopper_prefill_device.h"
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

bool HasLimits(const GpuAttentionArgs& args) { return args.window != 0 || args.softcap != 0; }

template <typename L, bool kLimits>
cudaError_t LaunchKernel(const GpuAttentionArgs& args, const CudaLaunch& launch) {
  constexpr auto kernel = PrefillAttentionKernel<L::kOfDType, L::kOfHeadDim, kLimits>;
  static const cudaError_t prepared = Prepare(kernel, L::kBytes);
  if (prepared != cudaSuccess) return prepared;
  return LaunchCuda(launch, kernel, dim3(args.heads, args.run_count), L::kThreads, L::kBytes, args);
}

// visit(Layout) of the arguments; `otherwise` where there is none.
template <KvDType kDType, typename Result, typename Visit>
Result WithHeadDim(uint32_t head_dim, Result otherwise, const Visit& visit) {
  switch (head_dim) {
    case 32:
      return visit(prefill::Layout<kDType, 32>());
    case 64:
      return visit(prefill::Layout<kDType, 64>());
    case 128:
      return visit(prefill::Layout<kDType, 128>());
    case 256:
      return visit(prefill::Layout<kDType, 256>());
    default:
      return otherwise;
  }
}
template <typename Result, typename Visit>
Result WithLayout(const GpuAttentionArgs& args, Result otherwise, const Visit& visit) {
  const uint32_t head_dim = args.batch.head_dim;
  switch (args.kv.dtype) {
    case KvDType::kBF16:
      return WithHeadDim<KvDType::kBF16>(head_dim, otherwise, visit);
    case KvDType::kF16:
      return WithHeadDim<KvDType::kF16>(head_dim, otherwise, visit);
    case KvDType::kInt8:
      return WithHeadDim<KvDType::kInt8>(head_dim, otherwise, visit);
    case KvDType::kFp8:
      return WithHeadDim<KvDType::kFp8>(head_dim, otherwise, visit);
    case KvDType::kF32:
      break;
  }
  return otherwise;
}

cudaError_t LaunchMma(const GpuAttentionArgs& args, const CudaLaunch& launch) {
  return WithLayout(args, cudaErrorInvalidValue, [&]<typename L>(L) {
    return HasLimits(args) ? LaunchKernel<L, true>(args, launch) : LaunchKernel<L, false>(args, launch);
  });
}

// A block stays on each multiprocessor.
template <typename L>
cudaError_t LaunchHopper(const GpuAttentionArgs& args, const CudaLaunch& launch) {
  constexpr auto kernel = HopperPrefillKernel<L>;
  static const cudaError_t prepared = Prepare(kernel, L::kBytes);
  if (prepared != cudaSuccess) return prepared;
  const uint32_t items = args.run_count * args.heads;
  return LaunchCuda(launch, kernel, dim3(std::min(Multiprocessors(), items)), hopper_prefill::kThreads,
                    L::kBytes, args);
}

template <bool kLimits>
cudaError_t LaunchHopperOfHeadDim(const GpuAttentionArgs& args, const CudaLaunch& launch) {
  using hopper_prefill::Layout;
  return args.batch.head_dim == 128 ? LaunchHopper<Layout<128, 128, kLimits>>(args, launch)
                                    : LaunchHopper<Layout<64, 128, kLimits>>(args, launch);
}

// The kernel numbers 16-byte chunks of a layer's keys in 32 bits.
bool IsSmallEnough(const GpuAttentionArgs& args) {
  const uint64_t rows = (uint64_t{args.batch.kv_heads} * args.batch.blocks) << args.batch.log2_block_tokens;
  return rows * args.batch.head_dim * KvElementBytes(args.kv.dtype) / 16 <= uint64_t{1} << 32;
}

bool IsAligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

std::span<const PrefillKernel> PrefillKernels(const GpuAttentionArgs& args) {
  static constexpr PrefillKernel kAll[] = {PrefillKernel::kMma, PrefillKernel::kWgmma};
  const std::span<const PrefillKernel> all = kAll;
  if (args.kv.dtype != KvDType::kBF16 || !HasWarpgroups()) return all.first(1);
  const uint32_t head_dim = args.batch.head_dim;
  return all.first(head_dim == 64 || head_dim == 128 ? 2 : 1);
}

PrefillKernel DefaultPrefillKernel(const GpuAttentionArgs& args) {
  return PrefillKernels(args).size() > 1 ? PrefillKernel::kWgmma : PrefillKernel::kMma;
}

size_t PrefillAttentionSharedBytes(const GpuAttentionArgs& args) {
  return WithLayout(args, size_t{0}, [](auto layout) { return size_t{layout.kBytes}; });
}

cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, CudaLaunch launch) {
  return PrefillAttentionCuda(args, DefaultPrefillKernel(args), launch);
}

cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, PrefillKernel kernel, CudaLaunch launch) {
  if (args.run_count == 0) return cudaSuccess;
  constexpr uint32_t kMostGridRows = 65535;
  if (args.run_count > kMostGridRows || args.batch.kv_heads == 0 || args.heads == 0 ||
      args.heads % args.batch.kv_heads != 0 || args.batch.log2_block_tokens < 4 || !(args.scale > 0) ||
      !(args.softcap >= 0) || !IsSmallEnough(args) || args.q_pitch % 8 != 0 || !IsAligned(args.q) ||
      !IsAligned(args.out) || !IsAligned(args.kv.keys.data) || !IsAligned(args.kv.values.data) ||
      !IsAligned(args.kv.keys.scales) || !IsAligned(args.kv.values.scales)) {
    return cudaErrorInvalidValue;
  }
  if (kernel == PrefillKernel::kMma) return LaunchMma(args, launch);
  const auto kernels = PrefillKernels(args);
  if (std::find(kernels.begin(), kernels.end(), kernel) == kernels.end()) return cudaErrorNotSupported;
  return HasLimits(args) ? LaunchHopperOfHeadDim<true>(args, launch)
                         : LaunchHopperOfHeadDim<false>(args, launch);
}

}  // namespace terrace
