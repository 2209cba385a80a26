// gemm of few tokens, bound by reading the weights once: out = x * weights^T by mma.m16n8k16 with the weights
// as A (16 rows are 16 outputs) and 8 tokens as B. Each lane copies the codes of its own fragments into a
// ring of shared memory that belongs to its warp, and makes fragments of them in registers
// (weight_pieces_device.h); no barrier of the block comes before the end. (Straight into registers ptxas lets
// all loads share a scoreboard and waits for the youngest of them, and what is under way takes the registers
// that x and the sums need.)
//
// A block has kRowTiles tiles of rows and all columns of up to 8 * kTokenTiles tokens. Each of its warps sums
// a part of the columns, then shared memory brings the sums together, in the order of the warps. So the order
// in which an output is summed depends on columns, format and the number of warps, never on tokens, on
// kTokenTiles or on kRowTiles: columns of B and tiles of A do not meet in an mma. Same bits in any batch.
//
// Of kW4 and kW8 the sum over a group of columns is scale * (sum(code x) - zero * sum(x)); sum(x) comes from
// an mma whose A is all ones, which puts it where the accumulators of the same tokens are.
//
// Before what this kernel depends on is done, each warp has its first pieces under way, and as many at any
// time until its end: about 4 KiB.
#pragma once

#include <cmath>

#include "kernels/activation/gate_function_device.h"
#include "kernels/gemm/gpu_gemm.h"
#include "kernels/gemm/weight_pieces_device.h"

namespace terrace {

inline constexpr uint32_t kLeastStreamWarps = 4, kMostStreamWarps = 16;  // and between them 8

// Slots of a warp's ring, each of two pieces, of one tile or of both: one is worked on, the others, about 4
// KiB, are under way.
template <typename Pieces>
inline constexpr uint32_t kStreamDepth = Pieces::kGroups == 0 ? 3 : 4;
template <typename Pieces>
inline constexpr uint32_t kStreamRingBytes = kStreamDepth<Pieces> * 2 * Pieces::kSlotBytes;

// Whether both row tiles' sums and temporaries fit 128 registers, as many as blocks of 16 warps have.
template <typename Pieces, uint32_t kTokenTiles>
inline constexpr bool kStreamHasTwoRowTiles = kTokenTiles <= (Pieces::kGroups == 0 ? 4 : 2);

// Fragments of sums that a warp gives at once to the reduction, 512 bytes each.
template <uint32_t kTokenTiles, uint32_t kRowTiles>
inline constexpr uint32_t kStreamRound = kTokenTiles* kRowTiles < 4 ? kTokenTiles* kRowTiles : 4;

// Of shared memory, for each warp: its ring, and with kShares twice what it gives to the reduction.
template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles, bool kShares>
inline constexpr uint32_t kStreamWarpBytes = kStreamRingBytes<Pieces> +
                                             (kShares ? 2 * 512 * kStreamRound<kTokenTiles, kRowTiles> : 0);

// The B fragments of a run of columns of a token: kSteps pairs of words.
template <uint32_t kSteps>
TERRACE_DEVICE void LoadRun(const uint16_t* x, uint32_t (&b)[kSteps][2]) {
  if constexpr (kSteps == 1) {
    const uint2 words = *reinterpret_cast<const uint2*>(x);
    b[0][0] = words.x, b[0][1] = words.y;
  } else {
    const uint4 words = *reinterpret_cast<const uint4*>(x);
    b[0][0] = words.x, b[0][1] = words.y, b[1][0] = words.z, b[1][1] = words.w;
  }
}

// Where a product is rounded is written out: a compiler that may fuse what it likes could do it in one kernel
// and not in another, and kernels that promise the same bits (ordered_gemm_device.h) share these.
//
// Of kW4 and kW8: the sum over a group of columns, added to those of the groups before.
TERRACE_DEVICE float AddGroup(float scale, float zero, float x_sum, float products, float sum) {
  return fmaf(scale, fmaf(zero, x_sum, products), sum);
}
// Scales of rows g and g + 8 of group `group` of a piece, and their zeros, as AddGroup takes them.
template <typename Pieces>
TERRACE_DEVICE void LoadGroupScales(const typename Pieces::Piece& piece, uint32_t group, float (&scales)[2],
                                    float (&zeros)[2]) {
  TERRACE_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t pair = piece.scales[2 * group + half];
    scales[half] = simt::F16Low(pair);
    zeros[half] = (simt::F16High(pair) + Pieces::kOffset) * -Pieces::kStep;
  }
}
// What becomes of a sum of all columns.
TERRACE_DEVICE float FinishSum(float sum, float factor, float addend) { return fmaf(sum, factor, addend); }

inline constexpr uint32_t kBF16Ones = 0x3f803f80;  // a pair

// sums += the products of a piece. The lane's columns begin at x + tokens[i] for its token of tile i.
template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles>
TERRACE_DEVICE void MultiplyPiece(const typename Pieces::Piece (&pieces)[kRowTiles], const uint16_t* x,
                                  const uint32_t (&tokens)[kTokenTiles],
                                  float (&sums)[kTokenTiles][kRowTiles][4]) {
  constexpr uint32_t kSteps = Pieces::kRun / 4;
  if constexpr (Pieces::kGroups == 0) {
    TERRACE_UNROLL
    for (uint32_t run = 0; run < Pieces::kRuns; ++run) {
      uint32_t a[kRowTiles][kSteps][4];
      TERRACE_UNROLL
      for (uint32_t row = 0; row < kRowTiles; ++row) {
        TERRACE_UNROLL
        for (uint32_t step = 0; step < kSteps; ++step) Pieces::Fragment(pieces[row], run, step, a[row][step]);
      }
      TERRACE_UNROLL
      for (uint32_t token = 0; token < kTokenTiles; ++token) {
        uint32_t b[kSteps][2];
        LoadRun(x + tokens[token] + run * Pieces::kRunStride, b);
        TERRACE_UNROLL
        for (uint32_t step = 0; step < kSteps; ++step) {
          TERRACE_UNROLL
          for (uint32_t row = 0; row < kRowTiles; ++row) {
            simt::MmaBF16(sums[token][row], a[row][step], b[step]);
          }
        }
      }
    }
  } else {
    constexpr uint32_t kRuns = Pieces::kRuns / Pieces::kGroups;  // of a group
    constexpr uint32_t kOnes[4] = {kBF16Ones, kBF16Ones, kBF16Ones, kBF16Ones};
    TERRACE_UNROLL
    for (uint32_t group = 0; group < Pieces::kGroups; ++group) {
      uint32_t a[kRowTiles][kRuns][kSteps][4];
      float scales[kRowTiles][2], zeros[kRowTiles][2];  // of rows g and g + 8
      TERRACE_UNROLL
      for (uint32_t row = 0; row < kRowTiles; ++row) {
        TERRACE_UNROLL
        for (uint32_t run = 0; run < kRuns; ++run) {
          TERRACE_UNROLL
          for (uint32_t step = 0; step < kSteps; ++step) {
            Pieces::Fragment(pieces[row], group * kRuns + run, step, a[row][run][step]);
          }
        }
        LoadGroupScales<Pieces>(pieces[row], group, scales[row], zeros[row]);
      }
      TERRACE_UNROLL
      for (uint32_t token = 0; token < kTokenTiles; ++token) {
        float x_sums[4] = {}, products[kRowTiles][4] = {};
        TERRACE_UNROLL
        for (uint32_t run = 0; run < kRuns; ++run) {
          uint32_t b[kSteps][2];
          LoadRun(x + tokens[token] + (group * kRuns + run) * Pieces::kRunStride, b);
          TERRACE_UNROLL
          for (uint32_t step = 0; step < kSteps; ++step) {
            simt::MmaBF16(x_sums, kOnes, b[step]);
            TERRACE_UNROLL
            for (uint32_t row = 0; row < kRowTiles; ++row) {
              simt::MmaBF16(products[row], a[row][run][step], b[step]);
            }
          }
        }
        TERRACE_UNROLL
        for (uint32_t row = 0; row < kRowTiles; ++row) {
          TERRACE_UNROLL
          for (uint32_t i = 0; i < 4; ++i) {
            sums[token][row][i] = AddGroup(scales[row][i / 2], zeros[row][i / 2], x_sums[i % 2],
                                           products[row][i], sums[token][row][i]);
          }
        }
      }
    }
  }
}

// A fragment of outputs: of rows `row` and row + 8 of tokens `token` and token + 1.
struct StreamOutputs {
  const GpuGemmArgs& args;
  uint32_t row, token;

  TERRACE_DEVICE uint64_t IndexOf(uint32_t i) const {
    return uint64_t{token + i % 2} * args.weights.rows + row + i / 2 * 8;
  }
  TERRACE_DEVICE bool Has(uint32_t i) const { return token + i % 2 < args.tokens; }

  // What the sums are added to.
  TERRACE_DEVICE void LoadAddends(float (&v)[4]) const {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      v[i] = 0;
      if (args.kind == GpuGemmOut::kAddF32 && Has(i)) v[i] = static_cast<const float*>(args.out)[IndexOf(i)];
    }
  }

  TERRACE_DEVICE void Store(const float (&v)[4]) const {
    if (args.kind == GpuGemmOut::kGated) {
      const uint32_t of_tile = kTileRows / 2, to = row / kTileRows * of_tile + row % kTileRows;
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 2; ++i) {
        const float gated = GateMul(args.gate, v[i], v[i + 2]);
        if (Has(i)) {
          static_cast<uint16_t*>(args.out)[uint64_t{token + i} * (args.weights.rows / 2) + to] =
              static_cast<uint16_t>(simt::PackBF16(gated, 0));
        }
      }
      return;
    }
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      if (!Has(i)) continue;
      if (args.kind == GpuGemmOut::kBF16) {
        static_cast<uint16_t*>(args.out)[IndexOf(i)] = static_cast<uint16_t>(simt::PackBF16(v[i], 0));
      } else {
        static_cast<float*>(args.out)[IndexOf(i)] = v[i];
      }
    }
  }
};

// Factors of the sums of rows `row` and row + 8.
template <typename Pieces>
TERRACE_DEVICE void LoadFactors(const GpuMatrix& matrix, uint32_t row, float (&factors)[2]) {
  TERRACE_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    if constexpr (Pieces::kHasRowScales) {
      factors[half] = simt::LoadReadOnly(static_cast<const float*>(matrix.scales) + row + 8 * half);
    } else {
      factors[half] = 1 / Pieces::kStep;
    }
  }
}

// 1 / sqrt(mean of the squares + epsilon) of token `token`, by a warp.
TERRACE_DEVICE float NormFactor(const GpuGemmArgs& args, uint32_t token) {
  const uint32_t count = args.weights.columns / kTileRows;  // a multiple of 4
  const float* squares = args.x_squares + token * count;
  float sum = 0;
  TERRACE_NO_UNROLL
  for (uint32_t i = simt::Lane() * 4; i < count; i += simt::kWarp * 4) {
    const float4 v = *reinterpret_cast<const float4*>(squares + i);
    sum += (v.x + v.y) + (v.z + v.w);
  }
  const float columns = static_cast<float>(args.weights.columns);
  return simt::ReciprocalSqrt(simt::WarpSum(sum) / columns + args.epsilon);
}

// Leaves what the next product wants of a fragment of the residual stream.
TERRACE_DEVICE void LeaveForNext(const GpuGemmArgs& args, const StreamOutputs& outputs,
                                 const float (&norm)[2], const float (&v)[4]) {
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 4; ++i) {
    if (!outputs.Has(i)) continue;
    args.next_x[outputs.IndexOf(i)] = static_cast<uint16_t>(simt::PackBF16(v[i] * norm[i / 2], 0));
  }
  float squares[2] = {v[0] * v[0] + v[2] * v[2], v[1] * v[1] + v[3] * v[3]};
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 2; ++i) {
    for (uint32_t mask = 4; mask < simt::kWarp; mask *= 2) squares[i] += simt::ShuffleXor(squares[i], mask);
    if (simt::Lane() < 4 && outputs.Has(i)) {
      args.next_squares[(outputs.token + i) * (args.weights.rows / kTileRows) + outputs.row / kTileRows] =
          squares[i];
    }
  }
}

// The tokens of a block of StreamGemmKernel.
template <uint32_t kTokenTiles>
struct StreamTokens {
  TERRACE_DEVICE static uint32_t First() { return blockIdx.x * (8 * kTokenTiles); }
  TERRACE_DEVICE static const uint16_t* X(const GpuGemmArgs& args) {
    return args.x + uint64_t{First()} * args.weights.columns;
  }
  TERRACE_DEVICE static uint32_t RowOf(uint32_t token) { return token; }
  TERRACE_DEVICE static void Wait(const GpuGemmArgs& args) {
    // A loop of one round is a block of its own for ptxas, which may otherwise put the wait before the
    // copies.
    do {
      simt::WaitForPrevious();
    } while (args.tokens == 0);
  }
};

// What a block does: groups of row tiles from blockIdx.y on, times tokens from of_block.First() on, to the
// outputs of the same tokens. Token i of them is row of_block.RowOf(i) of of_block.X(args);
// of_block.Wait(args) returns when they are there.
template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles, bool kShares, typename Tokens>
TERRACE_DEVICE void StreamGemmBlock(const GpuGemmArgs& args, uint32_t log2_warps, const Tokens& of_block) {
  constexpr uint32_t kDepth = kStreamDepth<Pieces>, kSlot = 2 * Pieces::kSlotBytes;
  constexpr uint32_t kSlotPieces = 2 / kRowTiles;
  constexpr uint32_t kFragments = kTokenTiles * kRowTiles, kRound = kStreamRound<kTokenTiles, kRowTiles>;
  const uint32_t lane = simt::Lane(), warp = simt::WarpIndex(), warps = 1u << log2_warps;
  const uint32_t columns = args.weights.columns, groups = args.weights.rows / (kTileRows * kRowTiles);
  const uint32_t pieces = columns / Pieces::kColumns;
  const uint32_t begin = (pieces * warp) >> log2_warps, end = (pieces * (warp + 1)) >> log2_warps;

  std::byte* const ring = simt::DynamicShared() + warp * kStreamRingBytes<Pieces>;
  std::byte* const ring_end = ring + kDepth * kSlot;
  Pieces next(args.weights, blockIdx.y * kRowTiles, begin, lane);
  uint32_t copied = begin;
  uint32_t left = kShares ? (groups - blockIdx.y + gridDim.y - 1) / gridDim.y : 1;  // groups to copy
  const auto copy = [&](std::byte* slot) {
    if (kShares && copied >= end && left > 1 && begin < end) {
      next.MoveOn(gridDim.y * kRowTiles, copied - begin);
      copied = begin;
      --left;
    }
    if (copied < end) {
      next.template CopyTwo<kRowTiles == 2>(slot, copied + 1 < end);
      next.Skip(kSlotPieces);
      copied += kSlotPieces;
    }
    simt::CpAsyncCommit();
  };
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kDepth - 1; ++i) copy(ring + i * kSlot);
  of_block.Wait(args);

  TERRACE_SHARED float norm_factors[kMostNormTokens];  // read behind the barrier of the reduction
  if (kTokenTiles == 1 && args.x_squares != nullptr) {
    TERRACE_NO_UNROLL
    for (uint32_t token = warp; token < args.tokens; token += warps) {
      const float factor = NormFactor(args, token);
      if (lane == 0) norm_factors[token] = factor;
    }
  }
  // A lane brings token lane / 4 of each tile; past the last, again the last, whose sums are not stored.
  const uint32_t first_token = of_block.First();
  const uint32_t last = args.tokens - 1 - first_token;
  const uint16_t* const first_x =
      of_block.X(args) + lane % 4 * Pieces::kLaneStride + uint64_t{begin} * Pieces::kColumns;
  uint32_t tokens[kTokenTiles];
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kTokenTiles; ++i) {
    const uint32_t token = 8 * i + lane / 4;
    tokens[i] = of_block.RowOf(token < last ? token : last) * columns;
  }
  // A warp's sums, [kRound][32 lanes], take the place of its ring; where the ring is filled for the next
  // group already, one of two places behind the rings in turns, so that one barrier a group is enough.
  uint32_t turn = 0;
  std::byte *slot = ring, *free = ring_end - kSlot;
  TERRACE_NO_UNROLL
  for (uint32_t group = blockIdx.y; group < groups; group += gridDim.y) {
    float sums[kTokenTiles][kRowTiles][4] = {};
    const uint16_t* x = first_x;
    for (uint32_t piece = begin; piece < end; piece += kSlotPieces, x += kSlotPieces * Pieces::kColumns) {
      simt::CpAsyncWait<kDepth - 2>();
      simt::SyncWarp();  // what others copied is here, and what they read of the free slot was read
      copy(free);
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kSlotPieces; ++i) {
        if (i > 0 && piece + i >= end) break;
        typename Pieces::Piece now[kRowTiles];
        TERRACE_UNROLL
        for (uint32_t row = 0; row < kRowTiles; ++row) {
          now[row] = next.Read(slot + (i + row) * Pieces::kSlotBytes);
        }
        MultiplyPiece<Pieces>(now, x + i * Pieces::kColumns, tokens, sums);
      }
      free = slot;
      slot = slot + kSlot < ring_end ? slot + kSlot : ring;
    }

    simt::SyncWarp();
    static_assert(!kShares || kFragments == kRound);
    static_assert(kShares || kRound * 512 <= kStreamRingBytes<Pieces>);
    TERRACE_UNROLL
    for (uint32_t round = 0; round < kFragments; round += kRound) {
      const auto partial = [&](uint32_t of_warp, uint32_t i) -> float4& {
        const uint32_t of_group = kShares ? (turn << log2_warps) + of_warp : 0;
        std::byte* at = simt::DynamicShared() +
                        (kShares ? (kStreamRingBytes<Pieces> << log2_warps) + of_group * (kRound * 512)
                                 : of_warp * kStreamRingBytes<Pieces>);
        return reinterpret_cast<float4*>(at)[i * simt::kWarp + lane];
      };
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kRound; ++i) {
        const float(&v)[4] = sums[(round + i) / kRowTiles][(round + i) % kRowTiles];
        partial(warp, i) = {v[0], v[1], v[2], v[3]};
      }
      // Warp i brings fragment i of the round to its end; what it reads for that is under way at the barrier.
      const uint32_t fragment = round + warp;
      const StreamOutputs outputs{args, (group * kRowTiles + fragment % kRowTiles) * kTileRows + lane / 4,
                                  first_token + fragment / kRowTiles * 8 + lane % 4 * 2};
      float addends[4] = {}, factors[2] = {}, next_norm[2] = {};
      const bool has_next = kTokenTiles == 1 && args.next_norm != nullptr;
      if (warp < kRound) {
        outputs.LoadAddends(addends);
        LoadFactors<Pieces>(args.weights, outputs.row, factors);
        if (has_next) {
          next_norm[0] = simt::LoadReadOnly(args.next_norm + outputs.row);
          next_norm[1] = simt::LoadReadOnly(args.next_norm + outputs.row + 8);
        }
      }
      simt::SyncThreads();
      if (warp < kRound) {
        float total[4] = {};
        for (uint32_t first = 0; first < warps; first += kLeastStreamWarps) {
          TERRACE_UNROLL
          for (uint32_t i = 0; i < kLeastStreamWarps; ++i) {
            const float4 one = partial(first + i, warp);
            total[0] += one.x, total[1] += one.y, total[2] += one.z, total[3] += one.w;
          }
        }
        TERRACE_UNROLL
        for (uint32_t i = 0; i < 4; ++i) {
          float factor = factors[i / 2];
          if (kTokenTiles == 1 && args.x_squares != nullptr) factor *= norm_factors[lane % 4 * 2 + i % 2];
          total[i] = FinishSum(total[i], factor, addends[i]);
        }
        outputs.Store(total);
        if (has_next) LeaveForNext(args, outputs, next_norm, total);
      }
      if (!kShares && round + kRound < kFragments) simt::SyncThreads();
    }
    if (!kShares) return;
    turn ^= 1;
  }
}

// grid: {tokens / (8 * kTokenTiles) rounded up, row blocks}, so that blocks which read the same weights run
// together; kStreamWarpBytes of shared memory for each warp. A row block is a group of kRowTiles tiles; with
// kShares, of one token tile, every gridDim.y-th group: the next one's first pieces are copied while the
// present one is summed.
template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles, bool kShares>
TERRACE_KERNEL void TERRACE_BOUNDS(kMostStreamWarps* simt::kWarp, 1)
    StreamGemmKernel(GpuGemmArgs args, uint32_t log2_warps) {
  simt::LetNextStart();
  StreamGemmBlock<Pieces, kTokenTiles, kRowTiles, kShares>(args, log2_warps, StreamTokens<kTokenTiles>());
}

}  // namespace terrace
