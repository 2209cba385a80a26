// gemm of some tens of tokens with quantized weights: out = x * weights^T by mma.m16n8k16 with the weights as
// A and tokens as B, as in stream_gemm_device.h, from which it differs where more tokens make other things
// dear:
//   - x: all warps of a block read it from shared memory, to which it is copied in stages, and each B
//   fragment
//     serves both row tiles of its warp;
//   - sums: codes become their values, rounded once to bf16, before the mma (TileFragment), so that there is
//     one set of sums for all groups. Scales of rows stay outside.
//
// A block has row_warps * 32 rows, and up to 8 * kTokenTiles tokens. Its columns come in stages of one unit
// (64 columns) for each of the `parts` warps that share rows. A stage of weights is in rings that belong to a
// warp; a stage of x is [parts][tokens][8 chunks of 16 bytes], the chunks of a token permuted (TileSwizzle).
// In the end the sums of the parts are brought together in shared memory, those of the splits in device
// memory by the last block to arrive, in rising order both. So an output's bits depend on rows, columns and
// format.
//
// Before what this kernel depends on is done, each warp has all but one stage of its weights under way.
#pragma once

#include "kernels/gemm/stream_gemm_device.h"
#include "kernels/gemm/tile_gemm_gpu.h"

namespace terrace {

// Of a unit of a warp: pieces of each of its two tiles, bytes of shared memory, and how many are in the ring.
template <typename Pieces>
inline constexpr uint32_t kTileUnitPieces = kTileUnitColumns / Pieces::kColumns;
template <typename Pieces>
inline constexpr uint32_t kTileUnitBytes = kTileUnitPieces<Pieces> * 2 * Pieces::kSlotBytes;
template <typename Pieces>
inline constexpr uint32_t kTileStages = kTileUnitBytes<Pieces> <= 1280 ? 4 : 3;

inline constexpr uint32_t kTileTokenBytes = 2 * kTileUnitColumns;  // of a unit of x

template <typename Pieces>
constexpr uint32_t TileGemmSharedBytes(const TileGemmShape& shape, uint32_t token_tiles) {
  const uint32_t parts = 1u << shape.log2_parts, warps = shape.row_warps << shape.log2_parts;
  const uint32_t stage = parts * 8 * token_tiles * kTileTokenBytes + warps * kTileUnitBytes<Pieces>;
  const uint32_t stages = kTileStages<Pieces> * stage;
  const uint32_t sums = warps * token_tiles * 1024;
  return stages > sums ? stages : sums;
}

// Chunk c of a token lies at c ^ TileSwizzle(token). Lanes 4 g + t of a warp read token g: eight lanes at
// once chunks t or 2 t of two tokens (x ^ 5 tells these apart), or, of 8 bytes, sixteen lanes two chunks of
// four tokens (x ^ 2): each of the eight places once.
TERRACE_DEVICE uint32_t TileSwizzle(uint32_t token) { return (token & 1) * 5 ^ (token & 2); }

// Scale and offset by which a fragment's elements of rows g and g + 8 become values.
struct TileScales {
  float scale[2], offset[2];
};
template <typename Pieces>
TERRACE_DEVICE TileScales TileScalesOf(const typename Pieces::Piece& piece, uint32_t group) {
  TileScales scales;
  TERRACE_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t pair = piece.scales[2 * group + half];
    const float scale = simt::F16Low(pair);
    scales.scale[half] = scale * (1 / Pieces::kStep);
    scales.offset[half] = -(simt::F16High(pair) + Pieces::kOffset) * scale;
  }
  return scales;
}

// scale * (code - zero) as bf16, for tiled formats; of others the codes. Of the f32 sum before the rounding:
// scale * (code + kOffset) is exact; so is the offset where `zero` is a whole number (all files' but Q4_K's),
// else it is off by 2^-24 of itself, and the sum by as much of itself.
template <typename Pieces>
TERRACE_DEVICE void TileFragment(const typename Pieces::Piece& piece, const TileScales& scales, uint32_t run,
                                 uint32_t step, uint32_t (&a)[4]) {
  Pieces::Fragment(piece, run, step, a);
  if constexpr (Pieces::kGroups > 0) {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      const float scale = scales.scale[i % 2], offset = scales.offset[i % 2];
      a[i] = simt::PackBF16(simt::BF16Low(a[i]) * scale + offset, simt::BF16High(a[i]) * scale + offset);
    }
  }
}

// sums += the products of piece `of_unit` of a unit, whose slots for both tiles begin at `slot`. x of the
// lane's token of tile 0 and the lane's columns is at `x` from the start of shared memory, where a token
// begins at a multiple of kTileTokenBytes.
template <typename Pieces, uint32_t kTokenTiles>
TERRACE_DEVICE void MultiplyTilePiece(const Pieces& pieces, const std::byte* slot, uint32_t of_unit,
                                      uint32_t x, uint32_t row_warps, float (&sums)[kTokenTiles][2][4]) {
  constexpr uint32_t kSteps = Pieces::kRun / 4;
  constexpr uint32_t kAtOnce = 4;  // tiles of tokens, whose x is in registers at a time
  TileScales scales[2];
  TERRACE_UNROLL
  for (uint32_t run = 0; run < Pieces::kRuns; ++run) {
    // Each run reads the codes once more: that takes fewer registers. Past the barrier they are not kept.
    if (run > 0) simt::SyncWarp();
    uint32_t a[2][kSteps][4];
    TERRACE_UNROLL
    for (uint32_t row = 0; row < 2; ++row) {
      const typename Pieces::Piece piece = pieces.Read(slot + row * Pieces::kSlotBytes);
      if constexpr (Pieces::kGroups > 0) {
        if (run < Pieces::kGroups) scales[row] = TileScalesOf<Pieces>(piece, run);
      }
      TERRACE_UNROLL
      for (uint32_t step = 0; step < kSteps; ++step) {
        TileFragment<Pieces>(piece, scales[row], run, step, a[row][step]);
      }
    }
    // These bits of the place are none of the lane's, so that they pass the swizzle.
    const std::byte* at =
        simt::DynamicShared() + (x ^ (2 * (of_unit * Pieces::kColumns + run * Pieces::kRunStride)));
    TERRACE_UNROLL
    for (uint32_t first = 0; first < kTokenTiles; first += kAtOnce) {
      // A loop of one round is a block of its own for ptxas, which may otherwise read all of x first. Each
      // has a condition of its own: where one is known to be false, loops that share it are none.
      do {
        TERRACE_UNROLL
        for (uint32_t token = first; token < first + kAtOnce; ++token) {
          uint32_t b[kSteps][2];
          LoadRun(reinterpret_cast<const uint16_t*>(at + token * 8 * kTileTokenBytes), b);
          TERRACE_UNROLL
          for (uint32_t step = 0; step < kSteps; ++step) {
            TERRACE_UNROLL
            for (uint32_t row = 0; row < 2; ++row) simt::MmaBF16(sums[token][row], a[row][step], b[step]);
          }
        }
      } while (row_warps == kMostTileWarps + 1 + (of_unit * Pieces::kRuns + run) * kTokenTiles + first);
    }
  }
}

// Factors of the sums of rows `row` and row + 8.
template <typename Pieces>
TERRACE_DEVICE void LoadTileFactors(const GpuMatrix& matrix, uint32_t row, float (&factors)[2]) {
  TERRACE_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    factors[half] = 1;
    if constexpr (Pieces::kHasRowScales) {
      factors[half] = simt::LoadReadOnly(static_cast<const float*>(matrix.scales) + row + 8 * half);
    }
  }
}

// What a lane copies of its warp's units of weights: what Pieces would, in few registers.
template <typename Pieces>
class TileUnits {
 public:
  TERRACE_DEVICE TileUnits(const GpuMatrix& matrix, uint32_t tile, uint32_t unit, uint32_t lane) {
    if constexpr (Pieces::kGroups == 0) {
      at_ = (tile * kTileRows + lane / 4) * (matrix.columns / 16) + unit * 4 + lane % 4;
    } else {
      const uint32_t pieces = matrix.columns / Pieces::kColumns, of = lane / kScaleLanes % 2;
      at_ = (tile * pieces + unit * kPieces) * kPieceChunks + lane;
      piece_ = unit * kPieces + lane / (2 * kScaleLanes) % kPieces;
      while (Pieces::kColumns << shift_ < matrix.group) ++shift_;
      scales_ = (tile + of) * ((pieces + (1u << shift_) - 1) >> shift_) * kScaleLanes + lane % kScaleLanes;
    }
  }

  // Starts to copy a unit to `slot`: [pieces][2 tiles].
  TERRACE_DEVICE void Copy(const GpuMatrix& matrix, uint32_t lane, std::byte* slot) const {
    if constexpr (Pieces::kGroups == 0) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {  // rows g, g + 8 of both
        simt::CpAsync16(slot + i * 512 + lane * 16, Chunk(matrix.codes, at_ + i * (matrix.columns / 2)),
                        true);
      }
    } else {
      const uint32_t tile_chunks = matrix.columns / Pieces::kColumns * kPieceChunks;
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 2 * kPieces; ++i) {
        simt::CpAsync16(slot + i * Pieces::kSlotBytes + lane * 16,
                        Chunk(matrix.codes, at_ + i / 2 * kPieceChunks + i % 2 * tile_chunks), true);
      }
      // The scales of all at once; lanes that are left over copy the same once more.
      simt::CpAsync16(slot + lane / kScaleLanes % (2 * kPieces) * Pieces::kSlotBytes + kPieceBytes +
                          lane % kScaleLanes * 16,
                      Chunk(matrix.scales, scales_ + (piece_ >> shift_) * kScaleLanes), true);
    }
  }
  TERRACE_DEVICE void Skip(uint32_t units) {
    at_ += units * (Pieces::kGroups == 0 ? 4 : kPieces * kPieceChunks);
    piece_ += units * kPieces;
  }

 private:
  static constexpr uint32_t kPieces = kTileUnitPieces<Pieces>, kPieceChunks = kPieceBytes / 16;
  static constexpr uint32_t kScaleLanes = Pieces::kGroups == 0 ? 1 : 4 * Pieces::kGroups;

  TERRACE_DEVICE static const std::byte* Chunk(const void* from, uint32_t i) {
    return static_cast<const std::byte*>(from) + uint64_t{i} * 16;
  }

  // In chunks of 16 bytes: codes of the first tile, scales of the lane's tile.
  uint32_t at_, scales_ = 0, piece_ = 0, shift_ = 0;
};

// What a thread copies of x: 16 bytes of each 4 * row_warps-th token, which have one place in the swizzle.
template <uint32_t kTokens>
class TileTokenCopies {
 public:
  // Of columns from `unit` to before `end`.
  TERRACE_DEVICE TileTokenCopies(const GpuGemmArgs& args, uint32_t log2_parts, uint32_t unit, uint32_t end) {
    const uint32_t chunk = threadIdx.x & ((8u << log2_parts) - 1), part = chunk / 8;
    const uint32_t token = threadIdx.x >> (3 + log2_parts);
    left_ = static_cast<int32_t>(end - unit - part);
    to_ = (part * kTokens + token) * kTileTokenBytes + ((chunk % 8) ^ TileSwizzle(token)) * 16;
    from_ = args.x + uint64_t{blockIdx.x * kTokens + token} * args.weights.columns + unit * kTileUnitColumns +
            chunk * 8;
  }

  // Starts to copy the next stage. Zeros take the place of tokens beyond the last.
  TERRACE_DEVICE void Copy(const GpuGemmArgs& args, const TileGemmShape& shape, std::byte* stage) {
    constexpr uint32_t kBytes = kTokens * kTileTokenBytes;  // of a part, a power of two
    if (left_ > 0) {
      const uint32_t tokens = args.tokens - blockIdx.x * kTokens, step = 4 * shape.row_warps;
      const uint16_t* from = from_;
      uint32_t to = to_;
      do {
        simt::CpAsync16(stage + to, from, to % kBytes < tokens * kTileTokenBytes);
        to += step * kTileTokenBytes;
        from += step * args.weights.columns;
      } while ((to ^ to_) < kBytes);
    }
    left_ -= 1 << shape.log2_parts;
    from_ += kTileUnitColumns << shape.log2_parts;
  }

 private:
  int32_t left_;  // units
  uint32_t to_;
  const uint16_t* from_;
};

// grid: {token blocks, splits, row blocks}, so that blocks which read the same weights run together; 32 *
// (row_warps << log2_parts) threads, TileGemmSharedBytes of shared memory. rows are a multiple of 16 and at
// least 32, columns of 64.
template <typename Pieces, uint32_t kTokenTiles>
TERRACE_KERNEL void TERRACE_BOUNDS(kMostTileWarps* simt::kWarp, 1)
    TileGemmKernel(GpuGemmArgs args, TileGemmScratch scratch, TileGemmShape shape) {
  simt::LetNextStart();
  constexpr uint32_t kTokens = 8 * kTokenTiles, kStages = kTileStages<Pieces>;
  constexpr uint32_t kUnitPieces = kTileUnitPieces<Pieces>, kUnitBytes = kTileUnitBytes<Pieces>;
  const uint32_t lane = simt::Lane(), warp = simt::WarpIndex(), log2_parts = shape.log2_parts;
  const uint32_t parts = 1u << log2_parts, warps = shape.row_warps << log2_parts;
  const uint32_t part = warp & (parts - 1);
  const uint32_t units = args.weights.columns / kTileUnitColumns;
  const uint32_t begin = units * blockIdx.y / shape.splits, end = units * (blockIdx.y + 1) / shape.splits;

  // Warps beyond the last row, and one with a single row tile left, take the last two, and give nothing or
  // one.
  const uint32_t tiles = args.weights.rows / kTileRows;
  const auto first_tile = [&](uint32_t row_warp) { return 2 * (blockIdx.z * shape.row_warps + row_warp); };
  const auto tile_of = [&](uint32_t row_warp) {
    return first_tile(row_warp) < tiles - 2 ? first_tile(row_warp) : tiles - 2;
  };

  const uint32_t x_bytes = parts * kTokens * kTileTokenBytes;  // of a stage
  std::byte* const ring = simt::DynamicShared() + kStages * x_bytes + warp * (kStages * kUnitBytes);
  TileUnits<Pieces> next(args.weights, tile_of(warp >> log2_parts), begin + part, lane);
  auto left = static_cast<int32_t>(end - begin - part);  // units of this warp
  const auto copy_weights = [&](std::byte* slot, int32_t ahead) {
    if (left > ahead) {
      next.Copy(args.weights, lane, slot);
      next.Skip(parts);
    }
  };
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kStages - 1; ++i) {
    copy_weights(ring + i * kUnitBytes, static_cast<int32_t>(i * parts));
    simt::CpAsyncCommit();
  }
  // A loop of one round is a block of its own for ptxas, which may otherwise put the wait before the copies.
  do {
    simt::WaitForPrevious();
  } while (args.tokens == 0);

  const uint32_t first_token = blockIdx.x * kTokens;
  TileTokenCopies<kTokens> copies(args, log2_parts, begin, end);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kStages - 1; ++i) {
    copies.Copy(args, shape, simt::DynamicShared() + i * x_bytes);
    simt::CpAsyncCommit();
  }

  const Pieces pieces(args.weights, 0, 0, lane);  // to read them
  float sums[kTokenTiles][2][4] = {};
  const uint32_t x_of_lane = (part * kTokens + lane / 4) * kTileTokenBytes +
                             ((lane % 4 * Pieces::kLaneStride * 2) ^ (TileSwizzle(lane / 4) * 16));
  uint32_t slot = 0;
  for (; left > -static_cast<int32_t>(part); left -= static_cast<int32_t>(parts)) {
    simt::CpAsyncWait<kStages - 2>();
    simt::SyncThreads();  // what others copied is here, and what they read of the free stage was read
    const uint32_t free = slot > 0 ? slot - 1 : kStages - 1;
    copy_weights(ring + free * kUnitBytes, static_cast<int32_t>((kStages - 1) * parts));
    copies.Copy(args, shape, simt::DynamicShared() + free * x_bytes);
    simt::CpAsyncCommit();
    if (left > 0) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kUnitPieces; ++i) {
        MultiplyTilePiece(pieces, ring + slot * kUnitBytes + 2 * i * Pieces::kSlotBytes, i,
                          slot * x_bytes + x_of_lane, shape.row_warps, sums);
      }
    }
    slot = slot + 1 < kStages ? slot + 1 : 0;
  }
  simt::SyncThreads();

  // Fragments of sums, of a warp [kTokenTiles][2][32 lanes], take the place of the stages.
  constexpr uint32_t kFragments = 2 * kTokenTiles;
  auto* const shared = reinterpret_cast<float4*>(simt::DynamicShared());
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kFragments; ++i) {
    const float(&v)[4] = sums[i / 2][i % 2];
    shared[(warp * kFragments + i) * simt::kWarp + lane] = {v[0], v[1], v[2], v[3]};
  }
  simt::SyncThreads();

  const auto store = [&](uint32_t fragment, const float4& sum) {
    const uint32_t row_warp = fragment / kFragments, tile = tile_of(row_warp) + fragment % 2;
    if (tile < first_tile(row_warp)) return;
    const StreamOutputs outputs{args, tile * kTileRows + lane / 4,
                                first_token + fragment % kFragments / 2 * 8 + lane % 4 * 2};
    float total[4] = {sum.x, sum.y, sum.z, sum.w}, addends[4], factors[2];
    outputs.LoadAddends(addends);
    LoadTileFactors<Pieces>(args.weights, outputs.row, factors);
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) total[i] = total[i] * factors[i / 2] + addends[i];
    outputs.Store(total);
  };
  const auto add = [](float4& to, const float4& v) { to.x += v.x, to.y += v.y, to.z += v.z, to.w += v.w; };
  const uint32_t fragments = shape.row_warps * kFragments;
  const uint32_t output = blockIdx.z * gridDim.x + blockIdx.x;
  auto* const partials = reinterpret_cast<float4*>(scratch.partials) +
                         uint64_t{output} * shape.splits * fragments * simt::kWarp + lane;
  for (uint32_t fragment = warp; fragment < fragments; fragment += warps) {
    const uint32_t row_warp = fragment / kFragments;
    const float4* from =
        shared + ((row_warp << log2_parts) * kFragments + fragment % kFragments) * simt::kWarp + lane;
    float4 sum = from[0];
    for (uint32_t i = 1; i < parts; ++i) add(sum, from[i * kFragments * simt::kWarp]);
    if (shape.splits == 1) {
      store(fragment, sum);
    } else {
      partials[(blockIdx.y * fragments + fragment) * simt::kWarp] = sum;
    }
  }
  if (shape.splits == 1) return;

  simt::ThreadFence();
  simt::SyncThreads();
  auto* const is_last = reinterpret_cast<uint32_t*>(simt::DynamicShared());
  if (threadIdx.x == 0) {
    *is_last = simt::AtomicAdd(&scratch.arrived[output], 1u) == shape.splits - 1;
    if (*is_last) scratch.arrived[output] = 0;
  }
  simt::SyncThreads();
  if (!*is_last) return;
  simt::ThreadFence();
  for (uint32_t fragment = warp; fragment < fragments; fragment += warps) {
    const float4* from = partials + fragment * simt::kWarp;
    float4 sum = {};
    constexpr uint32_t kAtOnce = 4;
    for (uint32_t first = 0; first < shape.splits; first += kAtOnce) {
      float4 some[kAtOnce] = {};
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        if (first + i < shape.splits) some[i] = from[(first + i) * fragments * simt::kWarp];
      }
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kAtOnce; ++i) add(sum, some[i]);
    }
    store(fragment, sum);
  }
}

}  // namespace terrace
