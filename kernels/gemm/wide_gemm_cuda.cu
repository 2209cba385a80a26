#include "kernels/gemm/wide_gemm_cuda.h"

#include <type_traits>

#include "kernels/gemm/wide_gemm_device.h"

namespace terrace {
namespace {

constexpr uint32_t kMostRowBlocks = 65535;

template <typename Pieces, uint32_t kTokens, bool kScalesSums = false>
cudaError_t Launch(const GpuGemmArgs& args, const WideGemmShape& shape, const TileGemmScratch& scratch,
                   CudaLaunch how) {
  const auto kernel = WideGemmKernel<Pieces, kTokens, kScalesSums>;
  static const cudaError_t raised = RaiseShared(kernel, kMostWideShared);
  if (raised != cudaSuccess) return raised;
  const uint32_t row_blocks = WideGemmRowBlocks(args.weights.rows, shape.row_groups);
  if (row_blocks > kMostRowBlocks) return cudaErrorInvalidValue;
  return LaunchCuda(how, kernel, dim3(WideGemmTokenBlocks(args.tokens), shape.splits, row_blocks),
                    shape.row_groups * simt::kWarpgroup, WideGemmSharedBytes<Pieces, kTokens>(shape), args,
                    scratch, shape);
}

template <typename Pieces>
cudaError_t LaunchTokens(const GpuGemmArgs& args, const WideGemmShape& shape, const TileGemmScratch& scratch,
                         CudaLaunch how) {
  if constexpr (std::is_same_v<Pieces, W4Pieces<1>>) {
    if (shape.scales_sums) {
      return WideGemmTokens(args.tokens) == 16 ? Launch<Pieces, 16, true>(args, shape, scratch, how)
                                               : Launch<Pieces, 32, true>(args, shape, scratch, how);
    }
  }
  switch (WideGemmTokens(args.tokens)) {
    case 16:
      return Launch<Pieces, 16>(args, shape, scratch, how);
    case 32:
      return Launch<Pieces, 32>(args, shape, scratch, how);
    case 64:
      return Launch<Pieces, 64>(args, shape, scratch, how);
    case 96:
      return Launch<Pieces, 96>(args, shape, scratch, how);
    default:
      return Launch<Pieces, 128>(args, shape, scratch, how);
  }
}

}  // namespace

cudaError_t WideGemmCuda(const GpuGemmArgs& args, const WideGemmShape& shape, const TileGemmScratch& scratch,
                         CudaLaunch how) {
  const GpuMatrix& weights = args.weights;
  if (weights.rows == 0 || weights.rows % kTileRows != 0 || weights.columns == 0 ||
      weights.columns % kWideUnitColumns != 0 || shape.row_groups == 0 ||
      shape.row_groups > kMostWideGroups || shape.splits == 0 ||
      shape.splits > std::min(kMostWideSplits, WideGemmStages(weights))) {
    return cudaErrorInvalidValue;
  }
  if (shape.scales_sums && !WideGemmCanScaleSums(weights, args.tokens)) return cudaErrorInvalidValue;
  if (args.next_norm != nullptr || args.x_squares != nullptr) return cudaErrorInvalidValue;
  if (shape.splits > 1 && (scratch.partials == nullptr || scratch.arrived == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (weights.format == GpuFormat::kBF16 || weights.format == GpuFormat::kSparse)
    return cudaErrorInvalidValue;
  if (!HasWarpgroups()) return cudaErrorNotSupported;
  if (args.tokens == 0) return cudaSuccess;
  switch (weights.format) {
    case GpuFormat::kBF16:
    case GpuFormat::kSparse:
      break;
    case GpuFormat::kE4M3:
      return LaunchTokens<E4M3Pieces>(args, shape, scratch, how);
    case GpuFormat::kW4:
      return weights.group == 32 ? LaunchTokens<W4Pieces<2>>(args, shape, scratch, how)
                                 : LaunchTokens<W4Pieces<1>>(args, shape, scratch, how);
    case GpuFormat::kW8:
      return weights.group == 16 ? LaunchTokens<W8Pieces<2>>(args, shape, scratch, how)
                                 : LaunchTokens<W8Pieces<1>>(args, shape, scratch, how);
  }
  return cudaErrorInvalidValue;
}

}  // namespace terrace
