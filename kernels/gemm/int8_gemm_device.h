// gemm of many tokens with int8 weights and activations (W8A8): out = x_scale * row_scale * (x * weights^T)
// by mma.m16n8k32 of int8, whose sums are exact, so that an output's bits depend on nothing but its operands.
// The weights are A, as they lie in tiles of kW8 (gpu_matrix.h): a lane's 16 bytes are rows g and g + 8 of
// columns 8 t to 8 t + 7 of 32, which stand for k 4t to 4t+3 and 4t+16 to 4t+19 of the mma, for x likewise.
//
// A block has kInt8BlockTiles tiles of rows and kInt8BlockTokens tokens, each of its four warps a quarter.
// Its columns come in stages of kInt8StageColumns, copied to shared memory ahead: the weights as they lie in
// memory, and x as rows of 64 bytes whose halves are exchanged for every second pair of tokens, so that what
// sixteen lanes read at once lies in different banks.
#pragma once

#include "kernels/gemm/gemm_stages_device.h"
#include "kernels/gemm/int8_gemm_gpu.h"
#include "kernels/gemm/stream_gemm_device.h"

namespace terrace {

inline constexpr uint32_t kInt8Threads = 128;
inline constexpr uint32_t kInt8RowTiles = 4, kInt8TokenTiles = 8;  // of a warp; two by two warps
inline constexpr uint32_t kInt8BlockTiles = 2 * kInt8RowTiles, kInt8BlockTokens = 2 * kInt8TokenTiles * 8;
inline constexpr uint32_t kInt8StageColumns = 64;
inline constexpr uint32_t kInt8TileBytes = kInt8StageColumns / kW8PieceColumns * kPieceBytes;  // of a stage
inline constexpr uint32_t kInt8WeightBytes = kInt8BlockTiles * kInt8TileBytes;
inline constexpr uint32_t kInt8StageBytes = kInt8WeightBytes + kInt8BlockTokens * kInt8StageColumns;
// Two blocks have room on a multiprocessor, of 8.0 too.
inline constexpr uint32_t kInt8Stages = 4, kInt8SharedBytes = kInt8Stages * kInt8StageBytes;
inline constexpr uint32_t kMostInt8Columns = 131'072;  // 127 * 128 * columns is within int32

constexpr uint32_t Int8GemmRowBlocks(uint32_t rows) {
  return (rows + kInt8BlockTiles * kTileRows - 1) / (kInt8BlockTiles * kTileRows);
}
constexpr uint32_t Int8GemmTokenBlocks(uint32_t tokens) {
  return (tokens + kInt8BlockTokens - 1) / kInt8BlockTokens;
}

// Starts to copy stage `stage` of the block's tiles. Zeros take the place of tiles beyond the last.
TERRACE_DEVICE void CopyInt8Weights(const GpuMatrix& matrix, uint32_t first_tile, uint32_t stage,
                                    std::byte* to) {
  constexpr uint32_t kChunks = kInt8TileBytes / 16;  // of a tile
  static_assert(kInt8BlockTiles * kChunks % kInt8Threads == 0);
  const uint32_t of_tile = matrix.columns / kInt8StageColumns * kChunks;
  const uint32_t tiles = matrix.rows / kTileRows - first_tile;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kInt8BlockTiles * kChunks / kInt8Threads; ++i) {
    const uint32_t chunk = i * kInt8Threads + threadIdx.x, tile = chunk / kChunks;
    const uint32_t from = (tile < tiles ? first_tile + tile : first_tile) * of_tile;
    simt::CpAsync16(to + chunk * 16, ChunkOf(matrix.codes, from + stage * kChunks + chunk % kChunks),
                    tile < tiles);
  }
}

// Halves of a token's 64 bytes are exchanged where this is 32.
TERRACE_DEVICE uint32_t Int8Exchange(uint32_t token) { return (token & 2) * 16; }

// Starts to copy the columns of stage `stage` of the block's tokens. Zeros take the place of tokens beyond
// the last.
TERRACE_DEVICE void CopyInt8Tokens(const GpuGemmArgs& args, const GpuInt8Rows& x, uint32_t first_token,
                                   uint32_t stage, std::byte* to) {
  constexpr uint32_t kChunks = kInt8StageColumns / 16, kAtOnce = kInt8Threads / kChunks;
  static_assert(kAtOnce % 4 == 0 &&
                kInt8BlockTokens % kAtOnce == 0);  // a thread's tokens are exchanged alike
  const uint32_t token = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  const uint32_t tokens = args.tokens - first_token;
  to += token * kInt8StageColumns + ((chunk * 16) ^ Int8Exchange(token));
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kInt8BlockTokens / kAtOnce; ++i) {
    const bool is_token = i * kAtOnce + token < tokens;
    const uint64_t row = uint64_t{first_token} + (is_token ? i * kAtOnce + token : 0);
    simt::CpAsync16(to + i * kAtOnce * kInt8StageColumns,
                    x.codes + row * args.weights.columns + stage * kInt8StageColumns + chunk * 16, is_token);
  }
}

// The lane's 16 bytes of a piece of kW8 as a fragment of A: codes less 128.
TERRACE_DEVICE void Int8Fragment(const uint4& codes, uint32_t (&a)[4]) {
  constexpr uint32_t kSigns = 0x80808080;
  a[0] = simt::BytePermute(codes.x, codes.y, 0x6420) ^ kSigns;
  a[1] = simt::BytePermute(codes.x, codes.y, 0x7531) ^ kSigns;
  a[2] = simt::BytePermute(codes.z, codes.w, 0x6420) ^ kSigns;
  a[3] = simt::BytePermute(codes.z, codes.w, 0x7531) ^ kSigns;
}

// sums += the products of a stage. `weights` are those of the warp's first tile, x of the lane's token and
// columns is at `x` for step 0 of the warp's first tile of tokens.
TERRACE_DEVICE void MultiplyInt8Stage(const std::byte* weights, const std::byte* x, uint32_t lane_x,
                                      int32_t (&sums)[kInt8TokenTiles][kInt8RowTiles][4]) {
  TERRACE_UNROLL
  for (uint32_t step = 0; step < kInt8StageColumns / kW8PieceColumns; ++step) {
    uint32_t a[kInt8RowTiles][4];
    TERRACE_UNROLL
    for (uint32_t row = 0; row < kInt8RowTiles; ++row) {
      Int8Fragment(*reinterpret_cast<const uint4*>(weights + row * kInt8TileBytes + step * kPieceBytes +
                                                   simt::Lane() * 16),
                   a[row]);
    }
    TERRACE_UNROLL
    for (uint32_t token = 0; token < kInt8TokenTiles; ++token) {
      const uint2 words = *reinterpret_cast<const uint2*>(x + token * 8 * kInt8StageColumns +
                                                          (lane_x ^ step * kW8PieceColumns));
      const uint32_t b[2] = {words.x, words.y};
      TERRACE_UNROLL
      for (uint32_t row = 0; row < kInt8RowTiles; ++row) simt::MmaS8(sums[token][row], a[row], b);
    }
  }
}

// grid: {Int8GemmTokenBlocks, Int8GemmRowBlocks}, so that blocks which read the same weights run together;
// kInt8Threads, kInt8SharedBytes. rows are a multiple of 16, columns of 64.
TERRACE_KERNEL void TERRACE_BOUNDS(kInt8Threads, 2) Int8GemmKernel(GpuGemmArgs args, GpuInt8Rows x) {
  simt::LetNextStart();
  const uint32_t lane = simt::Lane(), row_warp = simt::WarpIndex() % 2, token_warp = simt::WarpIndex() / 2;
  const uint32_t first_tile = blockIdx.y * kInt8BlockTiles, first_token = blockIdx.x * kInt8BlockTokens;
  const uint32_t lane_x = lane / 4 * kInt8StageColumns + ((lane % 4 * 8) ^ Int8Exchange(lane / 4));
  const uint32_t weights_of_warp = row_warp * kInt8RowTiles * kInt8TileBytes;
  const uint32_t x_of_warp = kInt8WeightBytes + token_warp * kInt8TokenTiles * 8 * kInt8StageColumns;
  int32_t sums[kInt8TokenTiles][kInt8RowTiles][4] = {};
  RunStages<kInt8Stages, kInt8StageBytes>(
      args.weights.columns / kInt8StageColumns, args.tokens,
      [&](uint32_t stage, std::byte* to) { CopyInt8Weights(args.weights, first_tile, stage, to); },
      [&](uint32_t stage, std::byte* to) {
        CopyInt8Tokens(args, x, first_token, stage, to + kInt8WeightBytes);
      },
      [&](const std::byte* at) { MultiplyInt8Stage(at + weights_of_warp, at + x_of_warp, lane_x, sums); });

  // A row tile at a time, of which all that is read is asked for before any is used.
  const uint32_t groups = (args.weights.columns + args.weights.group - 1) / args.weights.group;
  TERRACE_UNROLL
  for (uint32_t row = 0; row < kInt8RowTiles; ++row) {
    const uint32_t tile = first_tile + row_warp * kInt8RowTiles + row;
    if (tile * kTileRows >= args.weights.rows) break;
    // {scale, zero} of rows g and g + 8 of the tile's first group, which is as all others.
    const uint2 pairs = simt::LoadReadOnly(static_cast<const uint2*>(args.weights.scales) +
                                           uint64_t{tile} * groups * (kTileRows / 2) + lane / 4);
    const float row_scales[2] = {simt::F16Low(pairs.x), simt::F16Low(pairs.y)};
    const auto outputs = [&](uint32_t token) {
      return StreamOutputs{args, tile * kTileRows + lane / 4,
                           first_token + (token_warp * kInt8TokenTiles + token) * 8 + lane % 4 * 2};
    };
    float addends[kInt8TokenTiles][4], scales[kInt8TokenTiles][2];
    TERRACE_UNROLL
    for (uint32_t token = 0; token < kInt8TokenTiles; ++token) {
      const StreamOutputs of = outputs(token);
      of.LoadAddends(addends[token]);
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 2; ++i) scales[token][i] = of.Has(i) ? x.scales[of.token + i] : 0;
    }
    TERRACE_UNROLL
    for (uint32_t token = 0; token < kInt8TokenTiles; ++token) {
      float v[4];
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        v[i] = FinishSum(static_cast<float>(sums[token][row][i]), scales[token][i % 2] * row_scales[i / 2],
                         addends[token][i]);
      }
      outputs(token).Store(v);
    }
  }
}

}  // namespace terrace
