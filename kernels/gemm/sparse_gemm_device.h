// gemm of many tokens with 2:4 weights: out = x * weights^T by mma.sp.m16n8k32 with the weights as A, which
// takes the tensor cores as long as a dense product of half the columns (Mishra et al., "Accelerating Sparse
// Deep Neural Networks", 2021).
//
// A block has kSparseBlockTiles tiles of rows and kSparseBlockTokens tokens, each of its four warps a
// quarter: 64 rows and 64 tokens, so that what shared memory reads for an mma is little enough. Its columns
// come in stages of a piece (SparsePlaceOf in gpu_matrix.h), copied to shared memory ahead: the weights as
// they lie in memory, which is as lanes read them, and x as rows of 128 bytes whose chunks of 16 are permuted
// (chunk c of a token at c ^ token % 8), so that ldmatrix reads different banks.
//
// A sum's order depends on the columns alone.
#pragma once

#include "kernels/gemm/gemm_stages_device.h"
#include "kernels/gemm/stream_gemm_device.h"

namespace terrace {

inline constexpr uint32_t kSparseThreads = 128;
inline constexpr uint32_t kSparseRowTiles = 4, kSparseTokenTiles = 8;  // of a warp; two by two warps
inline constexpr uint32_t kSparseBlockTiles = 2 * kSparseRowTiles;
inline constexpr uint32_t kSparseBlockTokens = 2 * kSparseTokenTiles * 8;
inline constexpr uint32_t kSparseTokenBytes = 2 * kSparsePieceColumns;  // of a stage
inline constexpr uint32_t kSparseWeightBytes = kSparseBlockTiles * kSparsePieceBytes;
inline constexpr uint32_t kSparseStageBytes = kSparseWeightBytes + kSparseBlockTokens * kSparseTokenBytes;
// Two blocks have room on a multiprocessor, of 8.0 too.
inline constexpr uint32_t kSparseStages = 3, kSparseSharedBytes = kSparseStages * kSparseStageBytes;
static_assert(kSparseWeightBytes % 128 == 0);  // a token begins at a multiple of its bytes

constexpr uint32_t SparseGemmRowBlocks(uint32_t rows) {
  return (rows + kSparseBlockTiles * kTileRows - 1) / (kSparseBlockTiles * kTileRows);
}
constexpr uint32_t SparseGemmTokenBlocks(uint32_t tokens) {
  return (tokens + kSparseBlockTokens - 1) / kSparseBlockTokens;
}

// Starts to copy piece `piece` of the block's tiles. The first takes the place of tiles beyond the last,
// whose sums are not stored: of zeros the places would not rise, which mma.sp must not see.
TERRACE_DEVICE void CopySparseWeights(const GpuMatrix& matrix, uint32_t first_tile, uint32_t piece,
                                      std::byte* to) {
  constexpr uint32_t kChunks = kSparsePieceBytes / 16;  // of a tile
  const uint32_t of_tile = matrix.columns / kSparsePieceColumns * kChunks;
  const uint32_t tiles = matrix.rows / kTileRows - first_tile;
  TERRACE_UNROLL
  for (uint32_t first = 0; first < kSparseBlockTiles * kChunks; first += kSparseThreads) {
    const uint32_t chunk = first + threadIdx.x, tile = chunk / kChunks;
    if (tile >= kSparseBlockTiles) break;
    const uint32_t from = (tile < tiles ? first_tile + tile : first_tile) * of_tile;
    simt::CpAsync16(to + chunk * 16, ChunkOf(matrix.codes, from + piece * kChunks + chunk % kChunks), true);
  }
}

// Starts to copy the columns of piece `piece` of the block's tokens. Zeros take the place of tokens beyond
// the last.
TERRACE_DEVICE void CopySparseTokens(const GpuGemmArgs& args, uint32_t first_token, uint32_t piece,
                                     std::byte* to) {
  constexpr uint32_t kChunks = kSparseTokenBytes / 16, kAtOnce = kSparseThreads / kChunks;
  static_assert(kAtOnce % 8 == 0);  // a thread's tokens are permuted alike
  const uint32_t token = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  const uint32_t tokens = args.tokens - first_token;
  to += token * kSparseTokenBytes + (chunk ^ token % 8) * 16;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kSparseBlockTokens / kAtOnce; ++i) {
    const bool is_token = i * kAtOnce + token < tokens;
    const uint64_t row = uint64_t{first_token} + (is_token ? i * kAtOnce + token : 0);
    simt::CpAsync16(to + i * kAtOnce * kSparseTokenBytes,
                    args.x + row * args.weights.columns + piece * kSparsePieceColumns + chunk * 8, is_token);
  }
}

// sums += the products of step kStep of a stage. `weights` is the piece of the warp's first tile; x of the
// token whose row the lane gives to ldmatrix is at `x` for step 0, the warp's first tile of tokens.
template <uint32_t kStep>
TERRACE_DEVICE void MultiplySparseStep(const std::byte* weights, const std::byte* x, uint32_t lane_x,
                                       const uint32_t (&places)[kSparseRowTiles],
                                       float (&sums)[kSparseTokenTiles][kSparseRowTiles][4]) {
  uint32_t a[kSparseRowTiles][4];
  TERRACE_UNROLL
  for (uint32_t row = 0; row < kSparseRowTiles; ++row) {
    const uint4 kept =
        *reinterpret_cast<const uint4*>(weights + row * kSparsePieceBytes + kStep * 512 + simt::Lane() * 16);
    a[row][0] = kept.x, a[row][1] = kept.y, a[row][2] = kept.z, a[row][3] = kept.w;
  }
  TERRACE_UNROLL
  for (uint32_t token = 0; token < kSparseTokenTiles; ++token) {
    uint32_t b[4];
    simt::LdMatrix4(b, x + token * 8 * kSparseTokenBytes + (lane_x ^ kStep * 64));
    TERRACE_UNROLL
    for (uint32_t row = 0; row < kSparseRowTiles; ++row) {
      simt::MmaSparseBF16<kStep>(sums[token][row], a[row], b, places[row]);
    }
  }
}

// grid: {SparseGemmTokenBlocks, SparseGemmRowBlocks}, so that blocks which read the same weights run
// together; kSparseThreads, kSparseSharedBytes. rows are a multiple of 16, columns of 64.
TERRACE_KERNEL void TERRACE_BOUNDS(kSparseThreads, 2) SparseGemmKernel(GpuGemmArgs args) {
  simt::LetNextStart();
  const uint32_t lane = simt::Lane(), row_warp = simt::WarpIndex() % 2, token_warp = simt::WarpIndex() / 2;
  const uint32_t first_tile = blockIdx.y * kSparseBlockTiles, first_token = blockIdx.x * kSparseBlockTokens;
  // Lane 8 i + r gives ldmatrix token r and chunk i of a step.
  const uint32_t lane_x = lane % 8 * kSparseTokenBytes + ((lane / 8) ^ (lane % 8)) * 16;
  const uint32_t weights_of_warp = row_warp * kSparseRowTiles * kSparsePieceBytes;
  const uint32_t x_of_warp = kSparseWeightBytes + token_warp * kSparseTokenTiles * 8 * kSparseTokenBytes;
  float sums[kSparseTokenTiles][kSparseRowTiles][4] = {};
  RunStages<kSparseStages, kSparseStageBytes>(
      args.weights.columns / kSparsePieceColumns, args.tokens,
      [&](uint32_t piece, std::byte* to) { CopySparseWeights(args.weights, first_tile, piece, to); },
      [&](uint32_t piece, std::byte* to) {
        CopySparseTokens(args, first_token, piece, to + kSparseWeightBytes);
      },
      [&](const std::byte* at) {
        const std::byte* const weights = at + weights_of_warp;
        uint32_t places[kSparseRowTiles];
        TERRACE_UNROLL
        for (uint32_t row = 0; row < kSparseRowTiles; ++row) {
          places[row] = *reinterpret_cast<const uint32_t*>(weights + row * kSparsePieceBytes +
                                                           kSparseKeptBytes + lane * 4);
        }
        MultiplySparseStep<0>(weights, at + x_of_warp, lane_x, places, sums);
        MultiplySparseStep<1>(weights, at + x_of_warp, lane_x, places, sums);
      });

  // A row tile at a time, of which what the sums are added to is asked for before any is used.
  TERRACE_UNROLL
  for (uint32_t row = 0; row < kSparseRowTiles; ++row) {
    const uint32_t tile = first_tile + row_warp * kSparseRowTiles + row;
    if (tile * kTileRows >= args.weights.rows) break;
    const auto outputs = [&](uint32_t token) {
      return StreamOutputs{args, tile * kTileRows + lane / 4,
                           first_token + (token_warp * kSparseTokenTiles + token) * 8 + lane % 4 * 2};
    };
    float addends[kSparseTokenTiles][4];
    TERRACE_UNROLL
    for (uint32_t token = 0; token < kSparseTokenTiles; ++token) outputs(token).LoadAddends(addends[token]);
    TERRACE_UNROLL
    for (uint32_t token = 0; token < kSparseTokenTiles; ++token) {
      const float(&sum)[4] = sums[token][row];
      const float v[4] = {sum[0] + addends[token][0], sum[1] + addends[token][1], sum[2] + addends[token][2],
                          sum[3] + addends[token][3]};
      outputs(token).Store(v);
    }
  }
}

}  // namespace terrace
