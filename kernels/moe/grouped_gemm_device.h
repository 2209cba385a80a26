// Grouped products by the blocks of stream_gemm, and for chunks of kWideChunkTokens by those of ordered_gemm,
// which makes the same bits: a block has a chunk of an expert's places and some of its rows. The chunk says
// whose weights to read, so nothing is read before the routing is done. Blocks whose chunk is left over end
// at once.
#pragma once

#include "kernels/gemm/ordered_gemm_device.h"
#include "kernels/gemm/stream_gemm_device.h"
#include "kernels/launch_geometry.h"
#include "kernels/moe/grouped_gemm_gpu.h"

namespace terrace {

// The tokens of StreamGemmBlock: the places of a chunk.
struct ChunkTokens {
  uint32_t first;
  const uint32_t* pairs;  // of all places; null: x has a row for each place
  uint32_t per_token;

  TERRACE_DEVICE uint32_t First() const { return first; }
  TERRACE_DEVICE const uint16_t* X(const GpuGemmArgs& args) const {
    return args.x + (pairs == nullptr ? uint64_t{first} * args.weights.columns : 0);
  }
  TERRACE_DEVICE uint32_t RowOf(uint32_t i) const {
    return pairs == nullptr ? i : pairs[first + i] / per_token;
  }
  TERRACE_DEVICE static void Wait(const GpuGemmArgs&) {}  // it was done before the chunk was known
};

TERRACE_DEVICE ChunkTokens TokensOfChunk(const GpuGroupedGemmArgs& args, const GpuExpertChunk& chunk) {
  return {chunk.first, args.per_token > 0 ? args.groups.pairs : nullptr, args.per_token};
}
// The product of all places up to the chunk's last.
TERRACE_DEVICE GpuGemmArgs GemmOfChunk(const GpuGroupedGemmArgs& args, const GpuExpertChunk& chunk) {
  GpuGemmArgs gemm;
  gemm.x = args.x;
  gemm.tokens = chunk.first + chunk.count;
  gemm.weights = args.weights;
  gemm.weights.codes = args.experts[chunk.expert].codes;
  gemm.weights.scales = args.experts[chunk.expert].scales;
  gemm.out = args.out;
  gemm.kind = args.kind;
  gemm.gate = args.gate;
  return gemm;
}

// grid: {chunks, groups of kRowTiles tiles of rows}, so that blocks which read the same weights run together;
// kStreamWarpBytes of shared memory for each warp. groups.chunk_tokens is 8 * kTokenTiles at most.
template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles>
TERRACE_KERNEL void TERRACE_BOUNDS(kMostStreamWarps* simt::kWarp, 1)
    GroupedGemmKernel(GpuGroupedGemmArgs args, uint32_t log2_warps) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const GpuExpertChunk chunk = args.groups.chunks[blockIdx.x];
  if (chunk.count == 0) return;
  StreamGemmBlock<Pieces, kTokenTiles, kRowTiles, false>(GemmOfChunk(args, chunk), log2_warps,
                                                         TokensOfChunk(args, chunk));
}

inline constexpr uint32_t kWideRowTiles = 2, kWideTokenTiles = 4;
template <typename Pieces>
using WideChunkBlock = OrderedBlock<Pieces, kWideRowTiles, kWideTokenTiles>;

// What OrderedTokenCopies is to ordered_gemm. Places of rows of x, in chunks of 16 bytes, are in shared
// memory.
template <typename Block>
class WideChunkCopies {
 public:
  TERRACE_DEVICE WideChunkCopies(const uint16_t* x, const uint32_t* rows, uint32_t count)
      : x_(x), rows_(rows + threadIdx.x / kChunks), count_(count) {}
  // Starts to copy piece `piece`. Zeros take the place of tokens beyond the last.
  TERRACE_DEVICE void Copy(const GpuGemmArgs&, uint32_t piece, std::byte* to) const {
    static_assert(Block::kTokens % kTokensAtOnce == 0 && kTokensAtOnce % 4 == 0);  // swizzled alike
    const uint32_t token = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    to += token * Block::kTokenBytes + (chunk ^ Block::Swizzle(token)) * 16;
    TERRACE_UNROLL
    for (uint32_t n = 0; n < Block::kTokens; n += kTokensAtOnce) {
      simt::CpAsync16(to + n * Block::kTokenBytes, ChunkOf(x_, rows_[n] + piece * kChunks + chunk),
                      n + token < count_);
    }
  }

 private:
  static constexpr uint32_t kChunks = Block::kTokenBytes / 16, kTokensAtOnce = kOrderedThreads / kChunks;

  const uint16_t* x_;
  const uint32_t* rows_;  // of the thread's first token
  uint32_t count_;
};

// The tokens of OrderedGemmBlock: the places of a chunk.
template <typename Block>
struct WideChunkTokens {
  ChunkTokens places;
  uint32_t count;
  const uint32_t* rows;  // [Block::kTokens], in shared memory

  TERRACE_DEVICE uint32_t First() const { return places.First(); }
  TERRACE_DEVICE WideChunkCopies<Block> Copies(const GpuGemmArgs& args) const {
    return WideChunkCopies<Block>(places.X(args), rows, count);
  }
  TERRACE_DEVICE static void Wait(const GpuGemmArgs&) {}
};

// grid: {chunks of up to OrderedBlock::kTokens, row blocks}; kOrderedThreads, OrderedBlock::kShared.
template <typename Pieces>
TERRACE_KERNEL void TERRACE_BOUNDS(kOrderedThreads, 2)
    WideGroupedGemmKernel(GpuGroupedGemmArgs args, uint32_t log2_parts) {
  using Block = WideChunkBlock<Pieces>;
  simt::LetNextStart();
  simt::WaitForPrevious();
  const GpuExpertChunk chunk = args.groups.chunks[blockIdx.x];
  if (chunk.count == 0) return;
  const ChunkTokens places = TokensOfChunk(args, chunk);
  TERRACE_SHARED uint32_t rows[Block::kTokens];
  if (const uint32_t i = threadIdx.x; i < Block::kTokens) {
    rows[i] = places.RowOf(i < chunk.count ? i : 0) * (args.weights.columns / 8);
  }
  simt::SyncThreads();
  OrderedGemmBlock<Pieces, kWideRowTiles, kWideTokenTiles>(GemmOfChunk(args, chunk), log2_parts,
                                                           WideChunkTokens<Block>{places, chunk.count, rows});
}

// How a kernel for grouped products is launched: grid {chunks, row_blocks}.
struct GroupedLaunch {
  uint32_t row_blocks = 0, threads = 0, shared = 0;
};

// Of the host: calls launch(kernel, how) with the kernel for `args`, whose sums are of `warps` parts. Two row
// tiles become one where rows are no multiple of 32, and where sums of so many tokens leave no registers.
template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles, typename Launch>
auto LaunchGroupedRows(const GpuGroupedGemmArgs& args, uint32_t warps, const Launch& launch) {
  constexpr uint32_t kWarpBytes = kStreamWarpBytes<Pieces, kTokenTiles, kRowTiles, false>;
  return launch(GroupedGemmKernel<Pieces, kTokenTiles, kRowTiles>,
                GroupedLaunch{.row_blocks = args.weights.rows / (kTileRows * kRowTiles),
                              .threads = warps * simt::kWarp,
                              .shared = warps * kWarpBytes});
}
template <typename Pieces, uint32_t kTokenTiles, typename Launch>
auto LaunchGroupedTokens(const GpuGroupedGemmArgs& args, uint32_t warps, uint32_t row_tiles,
                         const Launch& launch) {
  if constexpr (kTokenTiles > 1 && kStreamHasTwoRowTiles<Pieces, kTokenTiles>) {
    if (row_tiles == 2 && args.weights.rows % (2 * kTileRows) == 0)
      return LaunchGroupedRows<Pieces, kTokenTiles, 2>(args, warps, launch);
  }
  return LaunchGroupedRows<Pieces, kTokenTiles, 1>(args, warps, launch);
}
template <typename Pieces, typename Launch>
auto LaunchGroupedPieces(const GpuGroupedGemmArgs& args, uint32_t warps, uint32_t row_tiles,
                         const Launch& launch) {
  static_assert(WideChunkBlock<Pieces>::kTokens == kWideChunkTokens);
  constexpr uint32_t kRows = WideChunkBlock<Pieces>::kRows;
  switch (args.groups.chunk_tokens) {
    case kWideChunkTokens:
      return launch(WideGroupedGemmKernel<Pieces>,
                    GroupedLaunch{.row_blocks = (args.weights.rows + kRows - 1) / kRows,
                                  .threads = kOrderedThreads,
                                  .shared = WideChunkBlock<Pieces>::kShared});
    case 8:
      return LaunchGroupedTokens<Pieces, 1>(args, warps, row_tiles, launch);
    case 16:
      return LaunchGroupedTokens<Pieces, 2>(args, warps, row_tiles, launch);
    default:
      return LaunchGroupedTokens<Pieces, 4>(args, warps, row_tiles, launch);
  }
}
template <typename Launch>
auto LaunchGroupedGemm(const GpuGroupedGemmArgs& args, uint32_t warps, uint32_t row_tiles,
                       const Launch& launch) {
  const uint32_t group = args.weights.group;
  switch (args.weights.format) {
    case GpuFormat::kE4M3:
      return LaunchGroupedPieces<E4M3Pieces>(args, warps, row_tiles, launch);
    case GpuFormat::kW4:
      return group == 32 ? LaunchGroupedPieces<W4Pieces<2>>(args, warps, row_tiles, launch)
                         : LaunchGroupedPieces<W4Pieces<1>>(args, warps, row_tiles, launch);
    case GpuFormat::kW8:
      return group == 16 ? LaunchGroupedPieces<W8Pieces<2>>(args, warps, row_tiles, launch)
                         : LaunchGroupedPieces<W8Pieces<1>>(args, warps, row_tiles, launch);
    case GpuFormat::kSparse:
      return LaunchGroupedPieces<SparsePieces>(args, warps, row_tiles, launch);
    case GpuFormat::kBF16:
      break;
  }
  return LaunchGroupedPieces<BF16Pieces>(args, warps, row_tiles, launch);
}

// Grid: ElementwiseGeometry of tokens * width / 4.
TERRACE_KERNEL void TERRACE_BOUNDS(kElementwiseThreads, 2) CombineExpertsKernel(GpuCombineExpertsArgs a) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const uint32_t quads = a.width / 4;
  const auto* const rows = reinterpret_cast<const float4*>(a.rows);
  auto* const out = reinterpret_cast<float4*>(a.out);
  const uint64_t all = uint64_t{a.tokens} * quads, step = uint64_t{gridDim.x} * kElementwiseThreads;
  for (uint64_t i = uint64_t{blockIdx.x} * kElementwiseThreads + threadIdx.x; i < all; i += step) {
    const auto token = static_cast<uint32_t>(i / quads);
    const uint64_t quad = i - uint64_t{token} * quads;
    float4 sum = {0, 0, 0, 0};
    TERRACE_NO_UNROLL
    for (uint32_t slot = 0; slot < a.per_token; ++slot) {
      const uint64_t pair = uint64_t{token} * a.per_token + slot;
      const float weight = a.weights[pair];
      const float4 row = rows[uint64_t{a.places[pair]} * quads + quad];
      sum = {fmaf(weight, row.x, sum.x), fmaf(weight, row.y, sum.y), fmaf(weight, row.z, sum.z),
             fmaf(weight, row.w, sum.w)};
    }
    if (a.adds_to_out) {
      const float4 before = out[i];
      sum = {before.x + sum.x, before.y + sum.y, before.z + sum.z, before.w + sum.w};
    }
    out[i] = sum;
  }
}

}  // namespace terrace
