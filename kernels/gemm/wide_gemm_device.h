// gemm of tens to thousands of tokens with quantized weights on Hopper (sm_90a): out = x * weights^T by wgmma
// with the weights as A, from registers, and tokens as B, from shared memory. A warp of a warpgroup has 16
// rows of A as fragments of mma.m16n8k16, which is what pieces of weights are (weight_pieces_device.h).
//
// A block has 1 to 4 warpgroups of 64 rows, up to kTokens tokens and one of `splits` parts of the columns.
// These come in stages of two pieces, of which kWideAhead are under way: as many as shared memory holds.
//   - Weights: each warp copies those of its own rows into a ring of its own, of kWideAhead + 1 slots.
//   - x: all warps copy a part of the tokens into a ring that they share, of kWideAhead + 2. A stage is one
//     or two tiles of 64 columns (simt/warpgroup.h) with a row for each token, in which the columns have the
//     order of the fragments (WideWordPlace): 4 bytes are copied at a time, a row of 128 by a warp, so that
//     reads are whole lines and no two writes share a bank.
// One barrier goes with the stages. A warp arrives for stage i + 1 in the middle of stage i, when what it
// copied for i + 1 is there and its products of i - 1 are done; behind it everyone may read i + 1 and
// overwrite i - 1. A run of fragments is made in registers while the products of the run before it go on.
//
// Codes of kW4 and kW8 become values in bf16, with 5 or 4 instructions a pair (WideFragment says how
// exactly), so that there is one set of sums for all groups. Scales of rows stay outside.
//
// The sums of splits are brought together by the last block to arrive, in rising order. Columns of B do not
// meet, so an output's bits do not depend on other tokens, nor on how many there are while `splits` is the
// same.
//
// Before what this kernel depends on is done, each warp has kWideAhead stages of its weights under way.
#pragma once

#include "kernels/gemm/tile_gemm_device.h"
#include "kernels/gemm/wide_gemm_gpu.h"
#include "kernels/simt/warpgroup.h"

namespace terrace {

inline constexpr uint32_t kWideUnitColumns = 64, kWideRowBytes = 2 * kWideUnitColumns;  // of a tile of x
inline constexpr uint32_t kMostWideShared = 227 * 1024;

template <typename Pieces>
inline constexpr uint32_t kWideStageUnits = 2 * Pieces::kColumns / kWideUnitColumns;
template <typename Pieces>
inline constexpr uint32_t kWideSlotBytes = 2 * Pieces::kSlotBytes;  // a stage of a warp's weights
template <typename Pieces, uint32_t kTokens>
inline constexpr uint32_t kWideTokenBytes = kWideStageUnits<Pieces>* kTokens* kWideRowBytes;  // of x

template <typename Pieces, uint32_t kTokens>
constexpr uint32_t WideRingBytes(uint32_t row_groups, uint32_t ahead) {
  return (ahead + 2) * kWideTokenBytes<Pieces, kTokens> +
         (ahead + 1) * 4 * row_groups * kWideSlotBytes<Pieces>;
}
// Behind the rings are a barrier and a flag.
template <typename Pieces, uint32_t kTokens>
constexpr uint32_t WideSharedBytes(uint32_t row_groups, uint32_t ahead) {
  return (WideRingBytes<Pieces, kTokens>(row_groups, ahead) + 16 + 1023) / 1024 * 1024;
}
template <typename Pieces, uint32_t kTokens>
constexpr uint32_t WideAheadThatFits() {
  uint32_t ahead = 8;
  while (WideSharedBytes<Pieces, kTokens>(kMostWideGroups, ahead) > kMostWideShared) --ahead;
  return ahead;
}
template <typename Pieces, uint32_t kTokens>
inline constexpr uint32_t kWideAhead = WideAheadThatFits<Pieces, kTokens>();
template <typename Pieces, uint32_t kTokens>
constexpr uint32_t WideGemmSharedBytes(const WideGemmShape& shape) {
  return WideSharedBytes<Pieces, kTokens>(shape.row_groups, kWideAhead<Pieces, kTokens>);
}

// Where word `word`, two columns, of a unit of a row of x belongs in the row of its tile: of a step of the
// mma lane t of four has elements 2t, 2t + 1, 2t + 8 and 2t + 9.
template <typename Pieces>
TERRACE_DEVICE constexpr uint32_t WideWordPlace(uint32_t word) {
  constexpr bool kIsLaneOutside = 4 * Pieces::kLaneStride == Pieces::kColumns;  // of runs
  const uint32_t column = 2 * word % Pieces::kColumns, in_run = column % Pieces::kRunStride;
  const uint32_t t = kIsLaneOutside ? column / Pieces::kLaneStride : in_run / Pieces::kLaneStride;
  const uint32_t run =
      kIsLaneOutside ? column % Pieces::kLaneStride / Pieces::kRunStride : column / Pieces::kRunStride;
  const uint32_t step = run * (Pieces::kRun / 4) + column % Pieces::kRun / 4;
  return 2 * word / Pieces::kColumns * (Pieces::kColumns / 2) + step * 8 + column % 4 / 2 * 4 + t;
}

// By which Bits of rows g and g + 8 become values. Each is a bf16, twice in a word, with a second one for
// what the first leaves.
struct WideScales {
  uint32_t scale[2], scale_rest[2];  // of kStep
  uint32_t minus_zero[2];            // of what fragments hold
  uint32_t offset_rest[2];           // what minus_zero leaves, times the scale
};
template <typename Pieces>
TERRACE_DEVICE WideScales WideScalesOf(const typename Pieces::Piece& piece, uint32_t group) {
  WideScales scales;
  TERRACE_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t pair = piece.scales[2 * group + half];
    const float scale = simt::F16Low(pair) * (1 / Pieces::kStep);
    const float minus_zero = simt::F16High(pair) * -Pieces::kStep - Pieces::kOffset * Pieces::kStep;
    scales.scale[half] = simt::PackBF16(scale, scale);
    scales.minus_zero[half] = simt::PackBF16(minus_zero, minus_zero);
    const float scale_rest = scale - simt::BF16High(scales.scale[half]);
    const float offset_rest = (minus_zero - simt::BF16High(scales.minus_zero[half])) * scale;
    scales.scale_rest[half] = simt::PackBF16(scale_rest, scale_rest);
    scales.offset_rest[half] = simt::PackBF16(offset_rest, offset_rest);
  }
  return scales;
}

// scale * (code - zero) as bf16, for tiled formats; of others the codes. With d = code + minus_zero:
//   d * scale + (d * scale_rest + offset_rest), where each line's operation rounds once to bf16.
// An f16 scale has 11 bits, of which scale_rest has the last three: scale + scale_rest is exact.
//   - zero a whole number from 0 to 128 (all files' but Q4_K's): d is exact and offset_rest 0. If kW4
//     has a zero of at most 15, d * scale_rest is exact, too, and the value is rounded once; else it may be
//     off by 2^-16 of itself before that.
//   - else zero counts with 16 bits: before the last rounding the value is off by 2^-15 of
//     |scale| (|zero| + kOffset), and where d needs more than the 8 bits of a bf16 (a zero below 0 or beyond
//     240) by 2^-8 of itself.
template <typename Pieces>
TERRACE_DEVICE void WideFragment(const typename Pieces::Piece& piece, const WideScales& scales, uint32_t run,
                                 uint32_t step, uint32_t (&a)[4]) {
  if constexpr (Pieces::kGroups == 0) {
    Pieces::Fragment(piece, run, step, a);
  } else {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t row = i % 2;
      const uint32_t d =
          simt::FmaBF16x2(Pieces::Bits(piece, run, step, i), Pieces::kFactor, scales.minus_zero[row]);
      const uint32_t rest = simt::FmaBF16x2(d, scales.scale_rest[row], scales.offset_rest[row]);
      a[i] = simt::FmaBF16x2(d, scales.scale[row], rest);
    }
  }
}

// What a thread copies of x: of every so many tokens, which take turns among the warps, a word of each unit.
template <typename Pieces, uint32_t kTokens>
class WideTokens {
 public:
  // From stage `stage` of the columns on.
  TERRACE_DEVICE WideTokens(const GpuGemmArgs& args, uint32_t warps, uint32_t stage) {
    const uint32_t token = simt::WarpIndex(), first_token = blockIdx.x * kTokens;
    to_ = token * kWideRowBytes + ((4 * WideWordPlace<Pieces>(simt::Lane())) ^ (token % 8 * 16));
    const uint32_t left = args.tokens - first_token;
    end_ = (left < kTokens ? left : kTokens) * kWideRowBytes;
    to_step_ = warps * kWideRowBytes;
    swizzle_step_ = warps % 8 * 16;  // 0 or 64
    from_ = args.x + uint64_t{first_token + token} * args.weights.columns + stage * 2 * Pieces::kColumns +
            2 * simt::Lane();
    from_step_ = uint64_t{warps} * args.weights.columns;
  }

  // Starts to copy the next stage; with zeros for the second unit unless it has one. Rows of tokens that
  // there are not keep what they hold: their sums go nowhere.
  TERRACE_DEVICE void Copy(bool has_second, std::byte* stage) {
    const uint16_t* from = from_;
    for (uint32_t to = to_; to < end_; to = (to + to_step_) ^ swizzle_step_, from += from_step_) {
      simt::CpAsync4(stage + to, from, true);
      if constexpr (kWideStageUnits<Pieces> == 2) {
        simt::CpAsync4(stage + to + kTokens * kWideRowBytes, from + kWideUnitColumns, has_second);
      }
    }
    from_ += 2 * Pieces::kColumns;
  }

 private:
  uint32_t to_, to_step_, swizzle_step_, end_;  // bytes of a stage
  const uint16_t* from_;
  uint64_t from_step_;
};

// Where the parts of stage i are in the rings, and where those of stage i + kAhead go: to slot i - 1 of
// weights and to stage i - 2 of x. Bytes.
template <uint32_t kSlot, uint32_t kStage, uint32_t kAhead>
struct WideRings {
  uint32_t slot = 0, free_slot = kAhead * kSlot;
  uint32_t stage = 0, last_stage = (kAhead + 1) * kStage, free_stage = kAhead * kStage;

  TERRACE_DEVICE void Next() {
    free_slot = slot;
    free_stage = last_stage;
    last_stage = stage;
    slot = slot < kAhead * kSlot ? slot + kSlot : 0;
    stage = stage < (kAhead + 1) * kStage ? stage + kStage : 0;
  }
};

// sums += the products of a stage, whose weights are at `slot` and whose tiles begin at `x`. `shares`: both
// pieces have the same scales. `a` and `scales` are the caller's: products that read `a` are under way at the
// end. between() is called behind the first piece, when all products of the stage before are done.
template <typename Pieces, uint32_t kTokens, typename Between>
TERRACE_DEVICE void MultiplyWideStage(const Pieces& pieces, const std::byte* slot, uint64_t x, bool shares,
                                      bool adds, uint32_t (&a)[2][Pieces::kRun / 4][4], WideScales& scales,
                                      float (&sums)[kTokens / 2], const Between& between) {
  constexpr uint32_t kSteps = Pieces::kRun / 4;
  TERRACE_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    const typename Pieces::Piece piece = pieces.Read(slot + half * Pieces::kSlotBytes);
    TERRACE_UNROLL
    for (uint32_t run = 0; run < Pieces::kRuns; ++run) {
      if constexpr (Pieces::kGroups > 0) {
        if (run < Pieces::kGroups && (half == 0 || !shares)) scales = WideScalesOf<Pieces>(piece, run);
      }
      uint32_t(&fragments)[kSteps][4] = a[(half * Pieces::kRuns + run) % 2];
      TERRACE_UNROLL
      for (uint32_t step = 0; step < kSteps; ++step) {
        WideFragment<Pieces>(piece, scales, run, step, fragments[step]);
      }
      simt::WgmmaFence();
      TERRACE_UNROLL
      for (uint32_t step = 0; step < kSteps; ++step) {
        const uint32_t column = half * Pieces::kColumns + (run * kSteps + step) * 16;
        const uint32_t tile = column / kWideUnitColumns * (kTokens * kWideRowBytes);
        simt::Wgmma<kTokens>(sums, fragments[step], simt::TileAt(x, tile + column % kWideUnitColumns * 2),
                             adds || half + run + step > 0);
      }
      simt::WgmmaCommit();
      simt::WgmmaWait<1>();  // the run before this one is done, and its fragments may be overwritten
    }
    if (half == 0) between();
  }
}

// Stores kCount fragments of sums, the first of tokens from `token` on, of rows `row` and row + 8.
template <uint32_t kCount>
TERRACE_DEVICE void StoreWide(const GpuGemmArgs& args, uint32_t row, uint32_t token,
                              const float (&factors)[2], const float4 (&sums)[kCount]) {
  float addends[kCount][4];
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kCount; ++i) StreamOutputs{args, row, token + 8 * i}.LoadAddends(addends[i]);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kCount; ++i) {
    float v[4] = {sums[i].x, sums[i].y, sums[i].z, sums[i].w};
    TERRACE_UNROLL
    for (uint32_t j = 0; j < 4; ++j) v[j] = v[j] * factors[j / 2] + addends[i][j];
    StreamOutputs{args, row, token + 8 * i}.Store(v);
  }
}

// sums = those of all splits, whose fragments lie `stride` float4 apart, in rising order.
template <uint32_t kCount>
TERRACE_DEVICE void AddWideSplits(const float4* from, uint32_t splits, uint64_t stride,
                                  float4 (&sums)[kCount]) {
  constexpr uint32_t kAtOnce = 4;  // whose loads are under way together
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kCount; ++i) sums[i] = {};
  TERRACE_NO_UNROLL
  for (uint32_t first = 0; first < splits; first += kAtOnce) {
    float4 some[kAtOnce][kCount] = {};
    TERRACE_UNROLL
    for (uint32_t split = 0; split < kAtOnce; ++split) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kCount; ++i) {
        if (first + split < splits) some[split][i] = from[(first + split) * stride + i * simt::kWarp];
      }
    }
    TERRACE_UNROLL
    for (uint32_t split = 0; split < kAtOnce; ++split) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kCount; ++i) {
        sums[i].x += some[split][i].x, sums[i].y += some[split][i].y;
        sums[i].z += some[split][i].z, sums[i].w += some[split][i].w;
      }
    }
  }
}

// Whether this block is the last of its output's splits to say that its partial sums are there; then those of
// the others are seen. All threads call it.
TERRACE_DEVICE bool IsLastWideSplit(uint32_t* arrived, uint32_t splits, uint32_t* flag) {
  simt::ThreadFence();
  simt::SyncThreads();
  if (threadIdx.x == 0) {
    *flag = simt::AtomicAdd(arrived, 1u) == splits - 1 ? 1 : 0;
    if (*flag != 0) *arrived = 0;
  }
  simt::SyncThreads();
  simt::ThreadFence();
  return *flag != 0;
}

// grid: {token blocks, splits, row blocks}, so that blocks which read the same weights run together;
// row_groups * 128 threads, WideGemmSharedBytes of shared memory. rows are a multiple of 16, columns of 64.
template <typename Pieces, uint32_t kTokens>
TERRACE_KERNEL void TERRACE_BOUNDS(kMostWideGroups* simt::kWarpgroup, 1)
    WideGemmKernel(GpuGemmArgs args, TileGemmScratch scratch, WideGemmShape shape) {
  if constexpr (simt::kHasWarpgroups) {
    simt::LetNextStart();
    constexpr uint32_t kAhead = kWideAhead<Pieces, kTokens>;
    static_assert(kAhead >= 2);
    constexpr uint32_t kSlot = kWideSlotBytes<Pieces>, kStage = kWideTokenBytes<Pieces, kTokens>;
    constexpr uint32_t kFragments = kTokens / 8, kBatch = kFragments < 4 ? kFragments : 4;
    const uint32_t lane = simt::Lane(), warp = simt::WarpIndex(), warps = 4 * shape.row_groups;
    // Warps beyond the last row take the last tile, and give nothing.
    const uint32_t tiles = args.weights.rows / kTileRows, own_tile = blockIdx.z * warps + warp;
    const uint32_t tile = own_tile < tiles ? own_tile : tiles - 1;
    const uint32_t pieces = args.weights.columns / Pieces::kColumns, stages = (pieces + 1) / 2;
    const uint32_t begin = stages * blockIdx.y / shape.splits, end = stages * (blockIdx.y + 1) / shape.splits;

    std::byte* const x_ring = simt::DynamicShared();
    std::byte* const rings_of_warps = x_ring + (kAhead + 2) * kStage;
    std::byte* const ring = rings_of_warps + warp * (kAhead + 1) * kSlot;
    auto* const ready = reinterpret_cast<uint64_t*>(rings_of_warps + warps * (kAhead + 1) * kSlot);
    auto* const flag = reinterpret_cast<uint32_t*>(ready + 1);
    if (threadIdx.x == 0) {
      simt::BarrierInit(ready, warps);
      simt::BarrierInitDone();
    }
    simt::SyncThreads();

    Pieces next(args.weights, tile, 2 * begin, lane);
    const auto copy_weights = [&](uint32_t stage, std::byte* slot) {
      if (stage < end) {
        next.template CopyTwo<false>(slot, 2 * stage + 1 < pieces);
        next.Skip(2);
      }
    };
    for (uint32_t i = 0; i < kAhead; ++i) {
      copy_weights(begin + i, ring + i * kSlot);
      simt::CpAsyncCommit();
    }
    // A loop of one round is a block of its own for ptxas, which may otherwise put the wait before the
    // copies.
    do {
      simt::WaitForPrevious();
    } while (args.tokens == 0);
    WideTokens<Pieces, kTokens> tokens(args, warps, begin);
    const auto copy_tokens = [&](uint32_t stage, std::byte* to) {
      if (stage < end) tokens.Copy(2 * stage + 1 < pieces, to);
    };
    for (uint32_t i = 0; i < kAhead; ++i) {
      copy_tokens(begin + i, x_ring + i * kStage);
      simt::CpAsyncCommit();
    }

    // What this warp copied for the next stage is there: of the groups that were committed since, the
    // youngest kAhead - 1 may be under way.
    const auto arrive = [&] {
      simt::CpAsyncWait<kAhead - 1>();
      simt::FenceAsyncShared();
      simt::SyncWarp();
      if (lane == 0) simt::BarrierArrive(ready);
    };
    arrive();
    float sums[kTokens / 2];
    uint32_t a[2][Pieces::kRun / 4][4] = {};
    WideScales scales = {};
    const bool shares = args.weights.group >= 2 * Pieces::kColumns;
    WideRings<kSlot, kStage, kAhead> rings;
    TERRACE_NO_UNROLL
    for (uint32_t stage = begin; stage < end; ++stage) {
      simt::BarrierWait(ready, (stage - begin) & 1);
      simt::SyncWarp();  // all lanes have read the slot that is free
      copy_weights(stage + kAhead, ring + rings.free_slot);
      copy_tokens(stage + kAhead, x_ring + rings.free_stage);
      simt::CpAsyncCommit();
      MultiplyWideStage<Pieces, kTokens>(next, ring + rings.slot,
                                         simt::SharedTile(x_ring + rings.stage, 8 * kWideRowBytes), shares,
                                         stage > begin, a, scales, sums, arrive);
      rings.Next();
    }
    simt::WgmmaWait<0>();
    simt::PinRegisters(sums);

    const uint32_t row = tile * kTileRows + lane / 4, token = blockIdx.x * kTokens + lane % 4 * 2;
    float factors[2];
    LoadTileFactors<Pieces>(args.weights, row, factors);
    const auto own = [&](uint32_t i) -> float4 {
      return {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
    };
    if (shape.splits == 1) {
      if (own_tile >= tiles) return;
      TERRACE_UNROLL
      for (uint32_t first = 0; first < kFragments; first += kBatch) {
        float4 some[kBatch];
        TERRACE_UNROLL
        for (uint32_t i = 0; i < kBatch; ++i) some[i] = own(first + i);
        StoreWide(args, row, token + 8 * first, factors, some);
      }
      return;
    }
    // [outputs][splits][warps][kFragments][32 lanes]
    const uint32_t output = blockIdx.z * gridDim.x + blockIdx.x;
    const uint64_t stride = uint64_t{warps} * kFragments * simt::kWarp;
    float4* const partials = reinterpret_cast<float4*>(scratch.partials) + output * shape.splits * stride +
                             warp * kFragments * simt::kWarp + lane;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kFragments; ++i) partials[blockIdx.y * stride + i * simt::kWarp] = own(i);
    if (!IsLastWideSplit(&scratch.arrived[output], shape.splits, flag) || own_tile >= tiles) return;
    TERRACE_NO_UNROLL
    for (uint32_t first = 0; first < kFragments; first += kBatch) {
      float4 some[kBatch];
      AddWideSplits(partials + first * simt::kWarp, shape.splits, stride, some);
      StoreWide(args, row, token + 8 * first, factors, some);
    }
  }
}

}  // namespace terrace
