// gemm of many tokens with the bits of stream_gemm: out = x * weights^T by mma.m16n8k16 with the weights as A
// and tokens as B, of fragments that hold the same columns at the same places, in the same order of sums. An
// output's sum is cut into parts of the columns (of stream_gemm: its warps). Here a block walks all parts,
// one after the other: a part's sums begin at zero in registers, and at its end they are added to the totals,
// which lie in shared memory, each thread's own. (In registers there is room for both only with tiles half as
// large, for which shared memory would have to read twice as much of x and weights as it can.)
//
// A block has kOrderedRowWarps x kOrderedTokenWarps warps, of kRowTiles tiles of rows and kTokenTiles tiles
// of 8 tokens each. A stage is a piece of columns (weight_pieces_device.h) of all its rows and tokens. In it
// a token's chunks of 16 bytes are permuted so that what eight lanes read at once lies in different banks.
//
// Before what this kernel depends on is done, the first stages of the weights are under way.
#pragma once

#include <type_traits>

#include "kernels/gemm/stream_gemm_device.h"

namespace terrace {

inline constexpr uint32_t kOrderedRowWarps = 2, kOrderedTokenWarps = 4;
inline constexpr uint32_t kOrderedWarps = kOrderedRowWarps * kOrderedTokenWarps;
inline constexpr uint32_t kOrderedThreads = kOrderedWarps * simt::kWarp;

// What a block has, with tiles of a warp.
template <typename Pieces, uint32_t kRowTiles, uint32_t kTokenTiles>
struct OrderedBlock {
  static constexpr uint32_t kTiles = kOrderedRowWarps * kRowTiles, kRows = kTiles * kTileRows;
  static constexpr uint32_t kTokens = kOrderedTokenWarps * kTokenTiles * 8;
  // One block of the large tiles fills a multiprocessor, two of the small.
  static constexpr bool kIsLarge = kRowTiles * kTokenTiles > 16;

  // Bytes of shared memory.
  static constexpr uint32_t kTotals = kRowTiles * kTokenTiles * sizeof(float4) * kOrderedThreads;
  static constexpr uint32_t kTokenBytes = 2 * Pieces::kColumns;  // of a stage
  static constexpr uint32_t kWeights = kTiles * Pieces::kSlotBytes, kX = kTokens * kTokenBytes;
  static constexpr uint32_t kStage = kWeights + kX;
  static constexpr uint32_t kMost = (kIsLarge ? 227 : 99) * 1024;
  static constexpr uint32_t kFitting = (kMost - kTotals) / kStage;
  static constexpr uint32_t kStages = kFitting < 4 ? kFitting : 4;
  static constexpr uint32_t kShared = kTotals + kStages * kStage;
  static_assert(kStages >= 2);

  // Chunk c of a token lies at c ^ Swizzle(token). Of runs of 8 bytes sixteen lanes read at once.
  TERRACE_DEVICE static uint32_t Swizzle(uint32_t token) {
    return kTokenBytes != 128 ? token & 2 : Pieces::kRun == 4 ? (token & 3) * 2 : (token & 1) * 5;
  }
};

// What a thread copies of a block's weights: some chunks of 16 bytes of each stage, whose places are numbers
// of chunks, as registers are short. Zeros take the place of rows beyond the last.
template <typename Block, typename Pieces>
class OrderedWeightCopies {
 public:
  TERRACE_DEVICE OrderedWeightCopies(const GpuMatrix& matrix, uint32_t first_tile)
      : tiles_(matrix.rows / kTileRows - first_tile) {
    const uint32_t i = threadIdx.x;
    if constexpr (std::is_same_v<Pieces, SparsePieces>) {
      at_ = first_tile * (matrix.columns / Pieces::kColumns) * kSparseChunks;
    } else if constexpr (Pieces::kIsRowMajor) {
      at_ = (first_tile * kTileRows + i / kRowChunks) * RowChunks(matrix) + i % kRowChunks;
    } else {
      while (Pieces::kColumns << shift_ < matrix.group) ++shift_;
      const uint32_t pieces = matrix.columns / Pieces::kColumns;
      at_ = (first_tile + i / kTileChunks) * pieces * kTileChunks + i % kTileChunks;
      scales_ = (first_tile + i / kScaleChunks) * ((pieces + (1u << shift_) - 1) >> shift_) * kScaleChunks +
                i % kScaleChunks;
    }
  }

  // Starts to copy piece `piece`.
  TERRACE_DEVICE void Copy(const GpuMatrix& matrix, uint32_t piece, std::byte* to) const {
    const uint32_t i = threadIdx.x;
    if constexpr (std::is_same_v<Pieces, SparsePieces>) {
      const uint32_t of_tile = matrix.columns / Pieces::kColumns * kSparseChunks;
      TERRACE_UNROLL
      for (uint32_t first = 0; first < Block::kTiles * kSparseChunks; first += kOrderedThreads) {
        const uint32_t chunk = first + i, tile = chunk / kSparseChunks;
        if (tile >= Block::kTiles) break;
        const bool is_tile = tile < tiles_;
        simt::CpAsync16(to + chunk * 16,
                        ChunkOf(matrix.codes, at_ + (is_tile ? tile * of_tile : 0) + piece * kSparseChunks +
                                                  chunk % kSparseChunks),
                        is_tile);
      }
    } else if constexpr (Pieces::kIsRowMajor) {
      constexpr uint32_t kTilesAtOnce = kOrderedThreads / (kTileRows * kRowChunks);
      static_assert(Pieces::kSlotBytes == kTileRows * 64 && Block::kTiles % kTilesAtOnce == 0);
      TERRACE_UNROLL
      for (uint32_t n = 0; n < Block::kTiles / kTilesAtOnce; ++n) {
        const bool is_row = n * kTilesAtOnce + i / (kTileRows * kRowChunks) < tiles_;
        const uint32_t rows = is_row ? n * kTilesAtOnce * kTileRows : 0;
        simt::CpAsync16(to + (n * kOrderedThreads + i) * 16,
                        ChunkOf(matrix.codes, at_ + rows * RowChunks(matrix) + piece * kRowChunks), is_row);
      }
    } else {
      static_assert(Block::kTiles * kTileChunks <= kOrderedThreads);
      if (const uint32_t tile = i / kTileChunks; tile < Block::kTiles) {
        simt::CpAsync16(to + tile * Pieces::kSlotBytes + i % kTileChunks * 16,
                        ChunkOf(matrix.codes, at_ + piece * kTileChunks), tile < tiles_);
      }
      if (const uint32_t tile = i / kScaleChunks; tile < Block::kTiles) {
        simt::CpAsync16(to + tile * Pieces::kSlotBytes + kPieceBytes + i % kScaleChunks * 16,
                        ChunkOf(matrix.scales, scales_ + (piece >> shift_) * kScaleChunks), tile < tiles_);
      }
    }
  }

 private:
  static constexpr uint32_t kRowChunks = 4, kTileChunks = kPieceBytes / 16;  // of a row's piece, a tile's
  static constexpr uint32_t kSparseChunks = kSparsePieceBytes / 16;
  static constexpr uint32_t kScaleChunks = Pieces::kGroups == 2 ? 8 : 4;
  TERRACE_DEVICE static uint32_t RowChunks(const GpuMatrix& matrix) {
    return matrix.columns / Pieces::kColumns * kRowChunks;
  }

  uint32_t tiles_, at_, scales_ = 0, shift_ = 0;
};

// What a thread copies of x. Zeros take the place of tokens beyond the last.
template <typename Block>
class OrderedTokenCopies {
 public:
  TERRACE_DEVICE OrderedTokenCopies(const GpuGemmArgs& args, uint32_t first_token) {
    const uint32_t token = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    left_ = static_cast<int32_t>(args.tokens - first_token - token);
    to_ = token * Block::kTokenBytes + (chunk ^ Block::Swizzle(token)) * 16;
    at_ = (first_token + token) * (args.weights.columns / 8) + chunk;
  }
  // Starts to copy piece `piece`.
  TERRACE_DEVICE void Copy(const GpuGemmArgs& args, uint32_t piece, std::byte* to) const {
    static_assert(Block::kTokens % kTokensAtOnce == 0 && kTokensAtOnce % 4 == 0);  // swizzled alike
    TERRACE_UNROLL
    for (uint32_t n = 0; n < Block::kTokens / kTokensAtOnce; ++n) {
      const bool is_token = static_cast<int32_t>(n * kTokensAtOnce) < left_;
      const uint32_t tokens = is_token ? n * kTokensAtOnce : 0;
      simt::CpAsync16(to + to_ + n * kTokensAtOnce * Block::kTokenBytes,
                      ChunkOf(args.x, at_ + tokens * (args.weights.columns / 8) + piece * kChunks), is_token);
    }
  }

 private:
  static constexpr uint32_t kChunks = Block::kTokenBytes / 16, kTokensAtOnce = kOrderedThreads / kChunks;

  int32_t left_;  // tokens from the thread's first on
  uint32_t to_, at_;
};

// B fragments of kCount runs of columns, from run `first` on, of kTokenTiles tiles whose first token of the
// lane has its columns at `x` from the start of shared memory.
template <typename Block, typename Pieces, uint32_t kTokenTiles, uint32_t kCount>
TERRACE_DEVICE void LoadTokens(uint32_t x, uint32_t first,
                               uint32_t (&b)[kTokenTiles][kCount][Pieces::kRun / 4][2]) {
  TERRACE_UNROLL
  for (uint32_t run = 0; run < kCount; ++run) {
    // These bits of the place are none of the lane's, so that they pass the swizzle.
    const std::byte* at = simt::DynamicShared() + (x ^ (2 * (first + run) * Pieces::kRunStride));
    TERRACE_UNROLL
    for (uint32_t token = 0; token < kTokenTiles; ++token) {
      LoadRun(reinterpret_cast<const uint16_t*>(at + token * 8 * Block::kTokenBytes), b[token][run]);
    }
  }
}

// sums += the products of a piece, each output's as MultiplyPiece of stream_gemm_device.h does it. `weights`
// is the slot of the warp's first tile, `x` as LoadTokens takes it.
template <typename Block, typename Pieces, uint32_t kRowTiles, uint32_t kTokenTiles>
TERRACE_DEVICE void MultiplyOrdered(const Pieces& pieces, const std::byte* weights, uint32_t x,
                                    float (&sums)[kTokenTiles][kRowTiles][4]) {
  constexpr uint32_t kSteps = Pieces::kRun / 4;
  if constexpr (Pieces::kGroups == 0) {
    TERRACE_UNROLL
    for (uint32_t run = 0; run < Pieces::kRuns; ++run) {
      uint32_t b[kTokenTiles][1][kSteps][2];
      LoadTokens<Block, Pieces>(x, run, b);
      TERRACE_UNROLL
      for (uint32_t row = 0; row < kRowTiles; ++row) {
        const typename Pieces::Piece piece = pieces.Read(weights + row * Pieces::kSlotBytes);
        TERRACE_UNROLL
        for (uint32_t step = 0; step < kSteps; ++step) {
          uint32_t a[4];
          Pieces::Fragment(piece, run, step, a);
          TERRACE_UNROLL
          for (uint32_t token = 0; token < kTokenTiles; ++token) {
            simt::MmaBF16(sums[token][row], a, b[token][0][step]);
          }
        }
      }
    }
  } else {
    constexpr uint32_t kRuns = Pieces::kRuns / Pieces::kGroups;  // of a group
    constexpr uint32_t kAtOnce = 4;                              // tiles of tokens, whose x is in registers
    constexpr uint32_t kOnes[4] = {kBF16Ones, kBF16Ones, kBF16Ones, kBF16Ones};
    static_assert(kTokenTiles % kAtOnce == 0);
    TERRACE_UNROLL
    for (uint32_t group = 0; group < Pieces::kGroups; ++group) {
      TERRACE_UNROLL
      for (uint32_t first = 0; first < kTokenTiles; first += kAtOnce) {
        simt::SyncWarp();  // so that x of the next tiles does not take registers before
        uint32_t b[kAtOnce][kRuns][kSteps][2];
        LoadTokens<Block, Pieces>(x + first * 8 * Block::kTokenBytes, group * kRuns, b);
        float x_sums[kAtOnce][4] = {};
        TERRACE_UNROLL
        for (uint32_t run = 0; run < kRuns; ++run) {
          TERRACE_UNROLL
          for (uint32_t step = 0; step < kSteps; ++step) {
            TERRACE_UNROLL
            for (uint32_t i = 0; i < kAtOnce; ++i) simt::MmaBF16(x_sums[i], kOnes, b[i][run][step]);
          }
        }
        TERRACE_UNROLL
        for (uint32_t row = 0; row < kRowTiles; ++row) {
          const typename Pieces::Piece piece = pieces.Read(weights + row * Pieces::kSlotBytes);
          float scales[2], zeros[2], products[kAtOnce][4] = {};
          LoadGroupScales<Pieces>(piece, group, scales, zeros);
          TERRACE_UNROLL
          for (uint32_t run = 0; run < kRuns; ++run) {
            TERRACE_UNROLL
            for (uint32_t step = 0; step < kSteps; ++step) {
              uint32_t a[4];
              Pieces::Fragment(piece, group * kRuns + run, step, a);
              TERRACE_UNROLL
              for (uint32_t i = 0; i < kAtOnce; ++i) simt::MmaBF16(products[i], a, b[i][run][step]);
            }
          }
          TERRACE_UNROLL
          for (uint32_t i = 0; i < kAtOnce; ++i) {
            float(&to)[4] = sums[first + i][row];
            TERRACE_UNROLL
            for (uint32_t e = 0; e < 4; ++e) {
              to[e] = AddGroup(scales[e / 2], zeros[e / 2], x_sums[i][e % 2], products[i][e], to[e]);
            }
          }
        }
      }
    }
  }
}

// The thread's own totals, [kTokenTiles][kRowTiles] fragments.
TERRACE_DEVICE float4& OrderedTotal(uint32_t fragment) {
  return reinterpret_cast<float4*>(simt::DynamicShared())[fragment * kOrderedThreads + threadIdx.x];
}
template <uint32_t kRowTiles, uint32_t kTokenTiles>
TERRACE_DEVICE void AddPart(const float (&sums)[kTokenTiles][kRowTiles][4], bool is_first) {
  TERRACE_UNROLL
  for (uint32_t token = 0; token < kTokenTiles; ++token) {
    TERRACE_UNROLL
    for (uint32_t row = 0; row < kRowTiles; ++row) {
      const float(&part)[4] = sums[token][row];
      float4& at = OrderedTotal(token * kRowTiles + row);
      float4 total = {0, 0, 0, 0};
      if (!is_first) total = at;
      at = {total.x + part[0], total.y + part[1], total.z + part[2], total.w + part[3]};
    }
  }
}

// Totals become outputs: a row tile at a time, of which all addends are asked for before any is used. (Not
// unrolled: that made the products spill.)
template <typename Pieces, uint32_t kRowTiles, uint32_t kTokenTiles>
TERRACE_DEVICE void StoreOrdered(const GpuGemmArgs& args, uint32_t first_tile, uint32_t first_token) {
  const uint32_t lane = simt::Lane();
  TERRACE_NO_UNROLL
  for (uint32_t row = 0; row < kRowTiles; ++row) {
    if ((first_tile + row) * kTileRows >= args.weights.rows) break;
    const auto outputs = [&](uint32_t token) {
      return StreamOutputs{args, (first_tile + row) * kTileRows + lane / 4,
                           first_token + token * 8 + lane % 4 * 2};
    };
    float factors[2], addends[kTokenTiles][4];
    LoadFactors<Pieces>(args.weights, outputs(0).row, factors);
    TERRACE_UNROLL
    for (uint32_t token = 0; token < kTokenTiles; ++token) outputs(token).LoadAddends(addends[token]);
    TERRACE_UNROLL
    for (uint32_t token = 0; token < kTokenTiles; ++token) {
      const float4 total = OrderedTotal(token * kRowTiles + row);
      const float(&addend)[4] = addends[token];
      const float v[4] = {
          FinishSum(total.x, factors[0], addend[0]), FinishSum(total.y, factors[0], addend[1]),
          FinishSum(total.z, factors[1], addend[2]), FinishSum(total.w, factors[1], addend[3])};
      outputs(token).Store(v);
    }
  }
}

// The tokens of a block of OrderedGemmKernel.
template <typename Block>
struct OrderedTokens {
  TERRACE_DEVICE static uint32_t First() { return blockIdx.x * Block::kTokens; }
  TERRACE_DEVICE static OrderedTokenCopies<Block> Copies(const GpuGemmArgs& args) {
    return OrderedTokenCopies<Block>(args, First());
  }
  TERRACE_DEVICE static void Wait(const GpuGemmArgs& args) {
    // A loop of one round is a block of its own for ptxas, which may otherwise put the wait before the
    // copies.
    do {
      simt::WaitForPrevious();
    } while (args.tokens == 0);
  }
};

// What a block does: row tiles of blockIdx.y, times what of_block.Copies(args) brings, to the outputs of
// tokens from of_block.First() on; of_block.Wait(args) returns when x is there.
template <typename Pieces, uint32_t kRowTiles, uint32_t kTokenTiles, typename Tokens>
TERRACE_DEVICE void OrderedGemmBlock(const GpuGemmArgs& args, uint32_t log2_parts, const Tokens& of_block) {
  using Block = OrderedBlock<Pieces, kRowTiles, kTokenTiles>;
  constexpr uint32_t kStages = Block::kStages;
  const uint32_t lane = simt::Lane(), warp = simt::WarpIndex();
  const uint32_t row_warp = warp % kOrderedRowWarps, token_warp = warp / kOrderedRowWarps;
  const uint32_t pieces = args.weights.columns / Pieces::kColumns;
  std::byte* const stages = simt::DynamicShared() + Block::kTotals;

  const OrderedWeightCopies<Block, Pieces> weights(args.weights, blockIdx.y * Block::kTiles);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kStages - 1; ++i) {
    if (i < pieces) weights.Copy(args.weights, i, stages + i * Block::kStage);
  }
  of_block.Wait(args);
  const auto tokens = of_block.Copies(args);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kStages - 1; ++i) {
    if (i < pieces) tokens.Copy(args, i, stages + i * Block::kStage + Block::kWeights);
    simt::CpAsyncCommit();
  }

  const Pieces reader(args.weights, 0, 0, lane);
  const uint32_t weights_of_warp = row_warp * kRowTiles * Pieces::kSlotBytes;
  const uint32_t x_of_lane = Block::kTotals + Block::kWeights +
                             (token_warp * kTokenTiles * 8 + lane / 4) * Block::kTokenBytes +
                             ((lane % 4 * Pieces::kLaneStride * 2) ^ (Block::Swizzle(lane / 4) * 16));
  uint32_t piece = 0, slot = 0;
  TERRACE_NO_UNROLL
  for (uint32_t part = 0; part < 1u << log2_parts; ++part) {
    const uint32_t end = (pieces * (part + 1)) >> log2_parts;
    float sums[kTokenTiles][kRowTiles][4] = {};
    TERRACE_NO_UNROLL
    for (; piece < end; ++piece) {
      simt::CpAsyncWait<kStages - 2>();
      simt::SyncThreads();  // what others copied is here, and what they read of the free stage was read
      const uint32_t free = slot > 0 ? slot - 1 : kStages - 1;
      if (const uint32_t next = piece + kStages - 1; next < pieces) {
        weights.Copy(args.weights, next, stages + free * Block::kStage);
        tokens.Copy(args, next, stages + free * Block::kStage + Block::kWeights);
      }
      simt::CpAsyncCommit();
      MultiplyOrdered<Block>(reader, stages + slot * Block::kStage + weights_of_warp,
                             slot * Block::kStage + x_of_lane, sums);
      slot = slot + 1 < kStages ? slot + 1 : 0;
    }
    AddPart(sums, part == 0);
  }
  StoreOrdered<Pieces, kRowTiles, kTokenTiles>(args, blockIdx.y * Block::kTiles + row_warp * kRowTiles,
                                               of_block.First() + token_warp * kTokenTiles * 8);
}

// grid: {token blocks, row blocks}, so that blocks which read the same weights run together; kOrderedThreads,
// OrderedBlock::kShared. 1 << log2_parts: the warps of the stream_gemm whose bits these are.
template <typename Pieces, uint32_t kRowTiles, uint32_t kTokenTiles>
TERRACE_KERNEL void TERRACE_BOUNDS(kOrderedThreads, kRowTiles* kTokenTiles > 16 ? 1 : 2)
    OrderedGemmKernel(GpuGemmArgs args, uint32_t log2_parts) {
  simt::LetNextStart();
  OrderedGemmBlock<Pieces, kRowTiles, kTokenTiles>(
      args, log2_parts, OrderedTokens<OrderedBlock<Pieces, kRowTiles, kTokenTiles>>());
}

}  // namespace terrace
