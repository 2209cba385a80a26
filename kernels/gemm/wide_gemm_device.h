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
// overwrite i - 1. Copies of stage i + kWideAhead begin behind that. Fragments of a piece (of half a piece
// where registers are few) are made while the products of the one before it go on.
//
// Codes of kW4 and kW8 become values in bf16, with 5 or 4 instructions a pair (WideFragment says how
// exactly), so that there is one set of sums for all groups. Scales of rows stay outside. With few tokens
// there are registers for a second set, of a stage: if that is of one group (INT4 of groups of 128), codes
// less their zeros are enough, 3 instructions a pair, and a stage's sums are scaled (kScalesSums).
//
// The sums of splits are brought together strip by strip (16 rows, the tokens of a block), each by the last
// warp to arrive, in rising order: so many warps share in it, whichever block is last. Columns of B do not
// meet, so an output's bits do not depend on other tokens, nor on how many there are while `splits` and
// `scales_sums` are the same.
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
// Behind the rings is a barrier.
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

// By which Bits of rows g and g + 8 become values: as f32 for sums, and as bf16, twice in a word, with a
// second one for what the first leaves.
struct WideScales {
  float of_sums[2];                  // of kStep
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
    scales.of_sums[half] = scale;
    scales.scale[half] = simt::PackBF16(scale, scale);
    scales.minus_zero[half] = simt::PackBF16(minus_zero, minus_zero);
    const float scale_rest = scale - simt::BF16High(scales.scale[half]);
    const float offset_rest = (minus_zero - simt::BF16High(scales.minus_zero[half])) * scale;
    scales.scale_rest[half] = simt::PackBF16(scale_rest, scale_rest);
    scales.offset_rest[half] = simt::PackBF16(offset_rest, offset_rest);
  }
  return scales;
}

// With kScalesSums code - zero, exact for whole zeros from 0 to 240; else scale * (code - zero) as bf16, for
// tiled formats; of others the codes. With d = code + minus_zero:
//   d * scale + (d * scale_rest + offset_rest), where each line's operation rounds once to bf16.
// An f16 scale has 11 bits, of which scale_rest has the last three: scale + scale_rest is exact.
//   - zero a whole number from 0 to 128 (all files' but Q4_K's): d is exact and offset_rest 0. If kW4
//     has a zero of at most 15, d * scale_rest is exact, too, and the value is rounded once; else it may be
//     off by 2^-16 of itself before that.
//   - else zero counts with 16 bits: before the last rounding the value is off by 2^-15 of
//     |scale| (|zero| + kOffset), and where d needs more than the 8 bits of a bf16 (a zero below 0 or beyond
//     240) by 2^-8 of itself.
template <typename Pieces, bool kScalesSums>
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
      if constexpr (kScalesSums) {
        a[i] = d;
      } else {
        const uint32_t rest = simt::FmaBF16x2(d, scales.scale_rest[row], scales.offset_rest[row]);
        a[i] = simt::FmaBF16x2(d, scales.scale[row], rest);
      }
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
    if (to_step_ == kMostWarps * kWideRowBytes) {  // of a full block, the commonest, in few instructions
      TERRACE_UNROLL
      for (uint32_t i = 0; i < (kTokens + kMostWarps - 1) / kMostWarps; ++i, from += from_step_) {
        const uint32_t to = to_ + i * kMostWarps * kWideRowBytes;
        if (to < end_) CopyToken(from, has_second, stage + to);
      }
    } else {
      TERRACE_NO_UNROLL
      for (uint32_t to = to_; to < end_; to = (to + to_step_) ^ swizzle_step_, from += from_step_) {
        CopyToken(from, has_second, stage + to);
      }
    }
    from_ += 2 * Pieces::kColumns;
  }

 private:
  static constexpr uint32_t kMostWarps = 4 * kMostWideGroups;

  TERRACE_DEVICE static void CopyToken(const uint16_t* from, bool has_second, std::byte* to) {
    simt::CpAsync4(to, from, true);
    if constexpr (kWideStageUnits<Pieces> == 2) {
      simt::CpAsync4(to + kTokens * kWideRowBytes, from + kWideUnitColumns, has_second);
    }
  }

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

// Steps of 16 columns of a warp whose fragments are made together: as many as there are registers for, that
// the tensor cores have the more to do while the next are made.
template <typename Pieces, uint32_t kTokens>
inline constexpr uint32_t kWideBatchSteps = kTokens <= 64 ? Pieces::kColumns / 16 : 2;

// The sums of a thread. With kScalesSums those of a stage are apart until it is done: its scales are for
// them.
template <typename Pieces, uint32_t kTokens, bool kScalesSums>
class WideSums {
 public:
  // Adds the products of a stage, whose weights are at `slot` and whose tiles begin at `x`. `shares`: both
  // pieces have the same scales. At the end products may be under way. between() is called behind the first
  // piece, when all products of the stage before are done.
  template <typename Between>
  TERRACE_DEVICE void AddStage(const Pieces& pieces, const std::byte* slot, uint64_t x, bool shares,
                               bool is_first, const Between& between) {
    TERRACE_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
      const typename Pieces::Piece piece = pieces.Read(slot + half * Pieces::kSlotBytes);
      TERRACE_UNROLL
      for (uint32_t batch = 0; batch < kBatches; ++batch) {
        uint32_t(&fragments)[kSteps][4] = a_[(half * kBatches + batch) % 2];
        const float last_scales[2] = {scales_.of_sums[0], scales_.of_sums[1]};
        MakeFragments(piece, batch, half == 0 || !shares, fragments);
        if constexpr (kScalesSums) {
          if (half == 0) AddPart(last_scales);
        }
        simt::WgmmaFence();
        TERRACE_UNROLL
        for (uint32_t i = 0; i < kSteps; ++i) {
          const uint32_t step = batch * kSteps + i, column = half * Pieces::kColumns + step * 16;
          const uint32_t tile = column / kWideUnitColumns * (kTokens * kWideRowBytes);
          const uint64_t b = simt::TileAt(x, tile + column % kWideUnitColumns * 2);
          if constexpr (kScalesSums) {
            simt::Wgmma<kTokens>(part_, fragments[i], b, half + step > 0);
          } else {
            simt::Wgmma<kTokens>(sums_, fragments[i], b, !is_first || half + step > 0);
          }
        }
        simt::WgmmaCommit();
        simt::WgmmaWait<1>();  // the batch before is done, and its fragments may be overwritten
      }
      if (half == 0) between();
    }
  }

  TERRACE_DEVICE void Finish() {
    if constexpr (kScalesSums) AddPart(scales_.of_sums);
    simt::WgmmaWait<0>();
    simt::PinRegisters(sums_);
  }

  // Fragment i, of tokens from 8 i on.
  TERRACE_DEVICE float4 Fragment(uint32_t i) const {
    return {sums_[4 * i], sums_[4 * i + 1], sums_[4 * i + 2], sums_[4 * i + 3]};
  }

 private:
  static constexpr uint32_t kCount = kTokens / 2, kSteps = kWideBatchSteps<Pieces, kTokens>;
  static constexpr uint32_t kRunSteps = Pieces::kRun / 4, kBatches = Pieces::kColumns / 16 / kSteps;
  static_assert(!kScalesSums || kBatches == 1);

  TERRACE_DEVICE void MakeFragments(const typename Pieces::Piece& piece, uint32_t batch, bool has_scales,
                                    uint32_t (&fragments)[kSteps][4]) {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kSteps; ++i) {
      const uint32_t run = (batch * kSteps + i) / kRunSteps, step = (batch * kSteps + i) % kRunSteps;
      if constexpr (Pieces::kGroups > 0) {
        if (step == 0 && run < Pieces::kGroups && has_scales) scales_ = WideScalesOf<Pieces>(piece, run);
      }
      WideFragment<Pieces, kScalesSums>(piece, scales_, run, step, fragments[i]);
    }
  }
  // All products are done then.
  TERRACE_DEVICE void AddPart(const float (&scales)[2]) {
    simt::WgmmaWait<0>();
    simt::PinRegisters(part_);
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kCount; ++i) sums_[i] += scales[i % 4 / 2] * part_[i];
  }

  uint32_t a_[2][kSteps][4] = {};
  WideScales scales_ = {};
  float sums_[kCount] = {}, part_[kScalesSums ? kCount : 1] = {};
};

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

// Whether this warp is the last of its strip's splits to say that its partial sums are there; then those of
// the others are seen. Of a warp.
TERRACE_DEVICE bool IsLastWideSplit(uint32_t* arrived, uint32_t splits) {
  simt::ThreadFence();
  simt::SyncWarp();
  uint32_t is_last = 0;
  if (simt::Lane() == 0) {
    is_last = simt::AtomicAdd(arrived, 1u) == splits - 1 ? 1 : 0;
    if (is_last != 0) *arrived = 0;
  }
  is_last = simt::Shuffle(is_last, 0);
  simt::ThreadFence();
  return is_last != 0;
}

// grid: {token blocks, splits, row blocks}, so that blocks which read the same weights run together;
// row_groups * 128 threads, WideGemmSharedBytes of shared memory. rows are a multiple of 16, columns of 64.
template <typename Pieces, uint32_t kTokens, bool kScalesSums = false>
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

    // Says that what this warp copied for a stage is there, if of the groups committed since none but the
    // youngest kUnderWay are under way.
    const auto arrive = [&]<uint32_t kUnderWay>() {
      simt::CpAsyncWait<kUnderWay>();
      simt::FenceAsyncShared();
      simt::SyncWarp();  // also: all lanes have read the slot that is free
      if (lane == 0) simt::BarrierArrive(ready);
    };
    arrive.template operator()<kAhead - 1>();
    WideSums<Pieces, kTokens, kScalesSums> sums;
    const bool shares = args.weights.group >= 2 * Pieces::kColumns;
    WideRings<kSlot, kStage, kAhead> rings;
    TERRACE_NO_UNROLL
    for (uint32_t stage = begin; stage < end; ++stage) {
      simt::BarrierWait(ready, (stage - begin) & 1);
      const uint64_t x = simt::SharedTile(x_ring + rings.stage, 8 * kWideRowBytes);
      sums.AddStage(next, ring + rings.slot, x, shares, stage == begin, [&] {
        // For the next stage. Only then the copies begin: the fence may wait for those under way.
        arrive.template operator()<kAhead - 2>();
        copy_weights(stage + kAhead, ring + rings.free_slot);
        copy_tokens(stage + kAhead, x_ring + rings.free_stage);
        simt::CpAsyncCommit();
      });
      rings.Next();
    }
    sums.Finish();
    if (own_tile >= tiles) return;

    const uint32_t row = tile * kTileRows + lane / 4, token = blockIdx.x * kTokens + lane % 4 * 2;
    float factors[2];
    LoadTileFactors<Pieces>(args.weights, row, factors);
    if (shape.splits == 1) {
      TERRACE_UNROLL
      for (uint32_t first = 0; first < kFragments; first += kBatch) {
        float4 some[kBatch];
        TERRACE_UNROLL
        for (uint32_t i = 0; i < kBatch; ++i) some[i] = sums.Fragment(first + i);
        StoreWide(args, row, token + 8 * first, factors, some);
      }
      return;
    }
    // [blocks of tokens][tiles][splits][kFragments][32 lanes]
    constexpr uint32_t kStride = kFragments * simt::kWarp;
    const uint64_t strip = uint64_t{blockIdx.x} * tiles + tile;
    float4* const partials =
        reinterpret_cast<float4*>(scratch.partials) + strip * shape.splits * kStride + lane;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kFragments; ++i) {
      partials[blockIdx.y * kStride + i * simt::kWarp] = sums.Fragment(i);
    }
    if (!IsLastWideSplit(&scratch.arrived[strip], shape.splits)) return;
    TERRACE_NO_UNROLL
    for (uint32_t first = 0; first < kFragments; first += kBatch) {
      float4 some[kBatch];
      AddWideSplits(partials + first * simt::kWarp, shape.splits, kStride, some);
      StoreWide(args, row, token + 8 * first, factors, some);
    }
  }
}

}  // namespace terrace
