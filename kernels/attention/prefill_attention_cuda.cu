#include "kernels/attention/prefill_attention_cuda.h"

#include <algorithm>
#include <array>

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

cudaError_t LaunchOfDType(const GpuAttentionArgs& args, const CudaLaunch& launch) {
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

// Of the current device; 0 when it cannot be asked.
int Attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

bool IsHopper() {
  return Attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         Attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

// A block stays on each multiprocessor.
template <typename L>
cudaError_t LaunchHopper(const GpuAttentionArgs& args, const CudaLaunch& launch) {
  constexpr auto kernel = HopperPrefillKernel<L>;
  static const cudaError_t prepared = Prepare(kernel, L::kBytes);
  if (prepared != cudaSuccess) return prepared;
  const auto blocks = static_cast<uint32_t>(Attribute(cudaDevAttrMultiProcessorCount));
  const uint32_t items = args.run_count * args.heads;
  return LaunchCuda(launch, kernel, dim3(std::min(blocks, items)), hopper_prefill::kThreads, L::kBytes, args);
}

struct HopperKernel {
  PrefillKernel kernel;
  cudaError_t (*launch)(const GpuAttentionArgs&, const CudaLaunch&);
};
template <uint32_t kHeadDim, uint32_t kKeys, uint32_t kStages, bool kTakesTurns, bool kQueriesInRegisters>
constexpr HopperKernel kHopper = {
    {kKeys, kStages, kTakesTurns, kQueriesInRegisters},
    LaunchHopper<hopper_prefill::Layout<kHeadDim, kKeys, kStages, kTakesTurns, kQueriesInRegisters>>};

constexpr HopperKernel kOf128[] = {kHopper<128, 128, 2, true, false>, kHopper<128, 128, 2, true, true>,
                                   kHopper<128, 128, 3, true, false>, kHopper<128, 128, 2, false, false>,
                                   kHopper<128, 96, 3, true, true>,   kHopper<128, 64, 4, true, true>};
constexpr HopperKernel kOf64[] = {kHopper<64, 128, 3, true, false>, kHopper<64, 128, 3, true, true>,
                                  kHopper<64, 192, 3, true, true>};

std::span<const HopperKernel> HopperKernels(uint32_t head_dim) {
  if (head_dim == 128) return kOf128;
  if (head_dim == 64) return kOf64;
  return {};
}

template <size_t kCount>
constexpr std::array<PrefillKernel, kCount + 1> WithFallback(const HopperKernel (&of)[kCount]) {
  std::array<PrefillKernel, kCount + 1> all{};
  for (size_t i = 0; i < kCount; ++i) all[i + 1] = of[i].kernel;
  return all;
}

// The kernel numbers 16-byte chunks of a layer's keys in 32 bits.
bool IsSmallEnough(const GpuAttentionArgs& args) {
  const uint64_t rows = (uint64_t{args.batch.kv_heads} * args.batch.blocks) << args.batch.log2_block_tokens;
  return rows * args.batch.head_dim * KvElementBytes(args.kv.dtype) / 16 <= uint64_t{1} << 32;
}

bool IsAligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

std::span<const PrefillKernel> PrefillKernels(uint32_t head_dim) {
  static constexpr auto kAll128 = WithFallback(kOf128);
  static constexpr auto kAll64 = WithFallback(kOf64);
  static constexpr PrefillKernel kFallback[1] = {};
  if (head_dim == 128) return kAll128;
  if (head_dim == 64) return kAll64;
  return kFallback;
}

PrefillKernel DefaultPrefillKernel(const GpuAttentionArgs& args) {
  const auto kernels = HopperKernels(args.batch.head_dim);
  if (args.kv.dtype != KvDType::kBF16 || kernels.empty() || !IsHopper()) return {};
  return kernels[0].kernel;
}

cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, CudaLaunch launch) {
  return PrefillAttentionCuda(args, DefaultPrefillKernel(args), launch);
}

cudaError_t PrefillAttentionCuda(const GpuAttentionArgs& args, const PrefillKernel& kernel,
                                 CudaLaunch launch) {
  if (args.run_count == 0) return cudaSuccess;
  constexpr uint32_t kMostGridRows = 65535;
  if (args.run_count > kMostGridRows || args.batch.kv_heads == 0 || args.heads == 0 ||
      args.heads % args.batch.kv_heads != 0 || args.batch.log2_block_tokens < 4 || !(args.scale > 0) ||
      !IsSmallEnough(args) || args.q_pitch % 8 != 0 || !IsAligned(args.q) || !IsAligned(args.out) ||
      !IsAligned(args.kv.keys.data) || !IsAligned(args.kv.values.data) || !IsAligned(args.kv.keys.scales) ||
      !IsAligned(args.kv.values.scales)) {
    return cudaErrorInvalidValue;
  }
  if (kernel == PrefillKernel{}) return LaunchOfDType(args, launch);
  const auto kernels = HopperKernels(args.batch.head_dim);
  const auto found = std::find_if(kernels.begin(), kernels.end(),
                                  [&](const HopperKernel& each) { return each.kernel == kernel; });
  if (found == kernels.end() || args.kv.dtype != KvDType::kBF16 || !IsHopper()) return cudaErrorNotSupported;
  return found->launch(args, launch);
}

}  // namespace terrace
