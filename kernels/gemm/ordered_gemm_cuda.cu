#include "kernels/gemm/ordered_gemm_cuda.h"

#include <bit>

#include "kernels/gemm/ordered_gemm_device.h"
#include "kernels/gemm/stream_gemm_cuda.h"

namespace terrace {
namespace {

constexpr uint32_t kMostRowBlocks = 65535;
constexpr uint32_t kSmallRows = 64, kSmallTokens = 128, kLargeRows = 128, kLargeTokens = 256;

constexpr uint32_t Blocks(uint32_t rows, uint32_t tokens, uint32_t block_rows, uint32_t block_tokens) {
  return (rows + block_rows - 1) / block_rows * ((tokens + block_tokens - 1) / block_tokens);
}

template <typename Pieces, uint32_t kRowTiles, uint32_t kTokenTiles>
cudaError_t Launch(const GpuGemmArgs& args, CudaLaunch how) {
  using Block = OrderedBlock<Pieces, kRowTiles, kTokenTiles>;
  static_assert(Block::kRows == (Block::kIsLarge ? kLargeRows : kSmallRows));
  static_assert(Block::kTokens == (Block::kIsLarge ? kLargeTokens : kSmallTokens));
  const auto kernel = OrderedGemmKernel<Pieces, kRowTiles, kTokenTiles>;
  static const cudaError_t raised = RaiseShared(kernel, Block::kShared);
  if (raised != cudaSuccess) return raised;
  const uint32_t row_blocks = Blocks(args.weights.rows, 1, Block::kRows, 1);
  if (row_blocks > kMostRowBlocks) return cudaErrorInvalidValue;
  const GpuMatrix& weights = args.weights;
  const uint32_t parts = StreamGemmParts(weights.rows, weights.columns, weights.format);
  return LaunchCuda(how, kernel, dim3(Blocks(args.tokens, 1, Block::kTokens, 1), row_blocks), kOrderedThreads,
                    Block::kShared, args, static_cast<uint32_t>(std::countr_zero(parts)));
}

bool HasSharedForLarge() {
  constexpr int kLargeShared = 227 * 1024;
  int device = 0, shared = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
         shared >= kLargeShared;
}

template <typename Pieces>
cudaError_t LaunchTile(const GpuGemmArgs& args, OrderedGemmTile tile, CudaLaunch how) {
  static const bool has_large = HasSharedForLarge();
  return tile == OrderedGemmTile::kLarge && has_large ? Launch<Pieces, 4, 8>(args, how)
                                                      : Launch<Pieces, 2, 4>(args, how);
}

}  // namespace

OrderedGemmTile DefaultOrderedGemmTile(uint32_t rows, uint32_t tokens) {
  // Rounds of blocks on 132 multiprocessors, of which each has one large or two small ones; two small ones
  // are half a large one's work, but read shared memory twice as often for it.
  constexpr uint32_t kLargeResident = 132, kSmallResident = 264, kLargeCost = 4, kSmallCost = 3;
  const uint32_t large = (Blocks(rows, tokens, kLargeRows, kLargeTokens) - 1) / kLargeResident + 1;
  const uint32_t small = (Blocks(rows, tokens, kSmallRows, kSmallTokens) - 1) / kSmallResident + 1;
  return small * kSmallCost < large * kLargeCost ? OrderedGemmTile::kSmall : OrderedGemmTile::kLarge;
}

cudaError_t OrderedGemmCuda(const GpuGemmArgs& args, OrderedGemmTile tile, CudaLaunch how) {
  const GpuMatrix& weights = args.weights;
  if (weights.rows == 0 || weights.rows % kTileRows != 0 || weights.columns == 0 ||
      weights.columns % 64 != 0) {
    return cudaErrorInvalidValue;
  }
  if (args.next_norm != nullptr || args.x_squares != nullptr) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  switch (weights.format) {
    case GpuFormat::kBF16:
      return LaunchTile<BF16Pieces>(args, tile, how);
    case GpuFormat::kE4M3:
      return LaunchTile<E4M3Pieces>(args, tile, how);
    case GpuFormat::kW4:
      return weights.group == 32 ? LaunchTile<W4Pieces<2>>(args, tile, how)
                                 : LaunchTile<W4Pieces<1>>(args, tile, how);
    case GpuFormat::kW8:
      return weights.group == 16 ? LaunchTile<W8Pieces<2>>(args, tile, how)
                                 : LaunchTile<W8Pieces<1>>(args, tile, how);
    case GpuFormat::kSparse:
      return LaunchTile<SparsePieces>(args, tile, how);
  }
  return cudaErrorInvalidValue;
}

}  // namespace terrace
