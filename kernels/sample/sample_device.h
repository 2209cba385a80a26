// The choice of a row's token (SampleChoose), and the kernels of a call in their order. sample_rows_device.h
// says how they follow each other.
#pragma once

#include <cstdint>

#include "kernels/sample/sample_cuts_device.h"

namespace terrace {

// ---- SampleChoose ----

struct SampleChooseListShared {
  uint64_t list[kSampleListed];
  SampleWeight weights[kSampleListed];  // of the row's tokens up to and with each of the list
  SampleWeight warp_weights[kSampleWarps];
  uint32_t min_p_low, min_p_high;
};

TERRACE_DEVICE void OrderPair(uint64_t& low, uint64_t& high) {
  const uint64_t least = LesserOf(low, high);
  high = GreaterOf(low, high);
  low = least;
}
// Of the block: sorts, rising (bitonic). Runs of `half` become runs of twice that: the first of a run against
// its last and so on inwards, then places ever closer, so that what is behind the end never moves. A thread
// takes two of these steps at once, on four places. A warp has the same places in all steps that stay within
// kWarp * 4 of them, or more if there are more than the block has.
TERRACE_DEVICE void SortList(uint64_t* list, uint32_t count) {
  uint32_t fours = simt::kWarp;  // of a warp
  while (count > 4 * kSampleWarps * fours) fours *= 2;
  const uint32_t begin = simt::WarpIndex() * fours, lane = simt::Lane();
  const auto at = [&](uint32_t i) { return i < count ? list[i] : kNoPlace; };
  const auto put = [&](uint32_t i, uint64_t place) {
    if (i < count) list[i] = place;
  };
  bool was_wide = false;
  for (uint32_t half = 1; half < count; half *= 2) {
    for (uint32_t stride = half; stride > 0; stride /= 4) {
      const bool is_wide = stride > 2 * fours;
      if (was_wide || is_wide) {
        simt::SyncThreads();
      } else {
        simt::SyncWarp();
      }
      was_wide = is_wide;
      if (stride == 1) {
        for (uint32_t pair = 2 * begin + lane; pair < 2 * (begin + fours); pair += simt::kWarp) {
          if (2 * pair + 1 >= count) break;
          OrderPair(list[2 * pair], list[2 * pair + 1]);
        }
        continue;
      }
      const uint32_t next = stride / 2;
      for (uint32_t four = begin + lane; four < begin + fours; four += simt::kWarp) {
        const uint32_t offset = four & (next - 1), first = 4 * four - 3 * offset;
        if (first + next >= count) continue;
        const uint32_t third = first + stride + (stride == half ? next - 1 - 2 * offset : 0);
        const uint32_t fourth = third + next;
        uint64_t p0 = list[first], p1 = list[first + next], p2 = at(third), p3 = at(fourth);
        if (stride == half) {  // inwards
          OrderPair(p0, p3);
          OrderPair(p1, p2);
        } else {
          OrderPair(p0, p2);
          OrderPair(p1, p3);
        }
        OrderPair(p0, p1);
        OrderPair(p2, p3);
        list[first] = p0;
        list[first + next] = p1;
        put(third, p2);
        put(fourth, p3);
      }
    }
  }
  simt::SyncThreads();
}

// Of the block: the row's token, in the first warp. The ends of all cuts are in the list. The last warp,
// which has little to sort, calls meanwhile() before some barrier.
template <typename Meanwhile>
TERRACE_DEVICE uint32_t DrawFromList(const SampleScratch& scratch, uint32_t row, const GpuSampleRow& params,
                                     const SampleScale& scale, const Meanwhile& meanwhile) {
  auto& shared = *reinterpret_cast<SampleChooseListShared*>(simt::DynamicShared());
  const SamplePlan& plan = scratch.plans[row];
  const uint32_t count = plan.listed;
  for (uint32_t i = threadIdx.x; i < count; i += kSampleThreads) {
    shared.list[i] = scratch.list[uint64_t{row} * kSampleListed + i];
  }
  if (threadIdx.x == 0) shared.min_p_low = shared.min_p_high = 0;
  const SampleRange likely = plan.ranges[1], top_k = plan.ranges[2];
  const SampleWeight before_draw = plan.ranges[0].weight_between;
  const uint32_t min_p_bin = plan.min_p_bin;
  const float min_p_octaves = MinPOctaves(params.min_p);
  simt::SyncThreads();
  if (simt::WarpIndex() == kSampleWarps - 1) meanwhile();
  SortList(shared.list, count);

  // A warp's tokens are in a row.
  const uint32_t warp = simt::WarpIndex(), rounds = (count + kSampleThreads - 1) / kSampleThreads;
  SampleWeight sum = 0, min_p_sum = 0;
  for (uint32_t round = 0; round < rounds; ++round) {
    const uint32_t i = (warp * rounds + round) * simt::kWarp + simt::Lane();
    SampleWeight weight = 0;
    if (i < count) {
      const float octaves =
          OctavesBelow(scale, LogitOfFallingBits(static_cast<uint32_t>(shared.list[i] >> 32)));
      const uint32_t bin = BinOf(octaves);
      weight = WeightOf(octaves, bin);
      if (bin == min_p_bin && octaves <= min_p_octaves) min_p_sum += weight;
    }
    const SampleWeight through = sum + SumThrough(weight);
    if (i < count) shared.weights[i] = through;
    sum = Shuffle64(through, simt::kWarp - 1);
  }
  if (simt::Lane() == 0) shared.warp_weights[warp] = sum;
  if (min_p_sum > 0) AddWeight(&shared.min_p_low, &shared.min_p_high, min_p_sum);
  simt::SyncThreads();
  SampleWeight before = 0;
  for (uint32_t i = 0; i < warp; ++i) before += shared.warp_weights[i];
  for (uint32_t round = 0; round < rounds; ++round) {
    const uint32_t i = (warp * rounds + round) * simt::kWarp + simt::Lane();
    if (i >= count) break;
    const uint32_t bin =
        BinOf(OctavesBelow(scale, LogitOfFallingBits(static_cast<uint32_t>(shared.list[i] >> 32))));
    shared.weights[i] += before + (IsIn(top_k, bin)    ? top_k.weight_between
                                   : IsIn(likely, bin) ? likely.weight_between
                                                       : before_draw);
  }
  simt::SyncThreads();
  if (warp > 0) return 0;

  const auto first_of = [&](SampleWeight goal) {
    return FirstOf(count - 1, [&](uint32_t i) { return shared.weights[i] >= goal; });
  };
  SampleWeight kept = TopKOf(params, plan.count) > 0 ? shared.weights[plan.top_k_index] : plan.weight;
  const SampleWeight enough = TopPGoal(params.top_p, kept);
  if (min_p_bin != kNoBin) {
    kept = LesserOf(kept, plan.before_min_p + WeightOfWords(shared.min_p_low, shared.min_p_high));
  }
  if (params.top_p < 1 && enough < kept) kept = shared.weights[first_of(enough)];
  return static_cast<uint32_t>(shared.list[first_of(DrawGoal(params.uniform, kept))]);
}

// ... of a row that has more tokens where a cut ends than a list holds, as many of the same logit: it is read
// again for each step.
inline constexpr uint32_t kRowAhead = 8,
                          kRowRing = kRowAhead * kSampleThreads;  // quads of a row on their way
struct SampleChooseRowShared {
  float4 row[kRowRing];
  uint32_t counts[kBinSlots], low[kBinSlots], high[kBinSlots];
  BinSums sums;
};
inline constexpr size_t kSampleChooseShared =
    LargerOf(sizeof(SampleChooseListShared), sizeof(SampleChooseRowShared));

struct SampleRowSource {
  const float* logits;  // adjusted
  uint32_t vocab;
  SampleScale scale;
};

// Calls take(falling bits, token, octaves) for every token of the row with a weight, each in one thread. A
// thread copies what it reads itself, kRowAhead pieces ahead.
template <typename Take>
TERRACE_DEVICE void ForEachOfRow(SampleChooseRowShared& shared, const SampleRowSource& from,
                                 const Take& take) {
  const uint32_t quads = (from.vocab + 3) / 4;
  const auto copy = [&](uint32_t quad) {
    if (quad < quads) simt::CpAsync16(&shared.row[quad % kRowRing], from.logits + 4 * quad, true);
    simt::CpAsyncCommit();
  };
  for (uint32_t i = 0; i < kRowAhead; ++i) copy(i * kSampleThreads + threadIdx.x);
  for (uint32_t quad = threadIdx.x; quad < quads; quad += kSampleThreads) {
    simt::CpAsyncWait<kRowAhead - 1>();
    const float4 logits = shared.row[quad % kRowRing];
    for (uint32_t i = 0; i < LesserOf(from.vocab - 4 * quad, 4u); ++i) {
      const float logit = i == 0 ? logits.x : i == 1 ? logits.y : i == 2 ? logits.z : logits.w;
      const float octaves = OctavesBelow(from.scale, logit);
      if (octaves < kWeightOctaves) take(FallingBits(logit), 4 * quad + i, octaves);
    }
    copy(quad + kRowRing);
  }
  simt::CpAsyncWait<0>();
}

// How far a cut reaches in the falling order: to the first token with which the tokens so far weigh `goal`,
// or to the goal-th token. At least 1, at most what there is.
struct CutGoal {
  SampleWeight goal;
  bool is_weight;
};
// A range of values that holds the end of a cut, and what the tokens below it sum to.
struct CutRange {
  SampleTotal before;
  uint32_t least, most;
};

// Narrows the range to one value. value_of(falling bits, token, &value) says whether a token counts.
template <typename ValueOf>
TERRACE_DEVICE void NarrowCut(SampleChooseRowShared& shared, const SampleRowSource& from, const CutGoal& cut,
                              CutRange& range, const ValueOf& value_of) {
  while (range.least < range.most) {
    uint32_t shift = 0;
    while ((range.most - range.least) >> shift >= kSampleBins) ++shift;
    simt::SyncThreads();  // the sums have been read
    for (uint32_t i = threadIdx.x; i < kBinSlots; i += kSampleThreads) {
      shared.counts[i] = shared.low[i] = shared.high[i] = 0;
    }
    simt::SyncThreads();
    ForEachOfRow(shared, from, [&](uint32_t falling, uint32_t token, float octaves) {
      uint32_t value;
      if (!value_of(falling, token, value) || value < range.least || value > range.most) return;
      const uint32_t slot = BinSlot((value - range.least) >> shift);
      simt::AtomicAdd(&shared.counts[slot], 1u);
      AddWeight(&shared.low[slot], &shared.high[slot], WeightOf(octaves, BinOf(octaves)));
    });
    simt::SyncThreads();
    SampleWeight weights[kThreadBins];
    uint32_t counts[kThreadBins];
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kThreadBins; ++i) {
      const uint32_t slot = BinSlot(threadIdx.x * kThreadBins + i);
      counts[i] = shared.counts[slot];
      weights[i] = WeightOfWords(shared.low[slot], shared.high[slot]);
    }
    SumBins(shared.sums, weights, counts);
    const uint32_t bin = cut.is_weight
                             ? BinOfWeight(shared.sums, cut.goal - range.before.weight)
                             : BinOfCount(shared.sums, static_cast<uint32_t>(cut.goal) - range.before.count);
    const SampleTotal before = Before(shared.sums, bin);
    range.before.weight += before.weight;
    range.before.count += before.count;
    range.least += bin << shift;
    range.most = LesserOf(range.most, range.least + ((1u << shift) - 1));
  }
}

enum class CutKind : uint32_t { kTopK, kTopP, kDraw };

template <typename Meanwhile>
TERRACE_DEVICE uint32_t DrawFromRow(const GpuSampleArgs& a, const SampleScratch& scratch, uint32_t row,
                                    const GpuSampleRow& params, const SampleScale& scale,
                                    const Meanwhile& meanwhile) {
  auto& shared = *reinterpret_cast<SampleChooseRowShared*>(simt::DynamicShared());
  const SamplePlan& plan = scratch.plans[row];
  const SampleRowSource from = {a.logits + uint64_t{row} * a.pitch, a.vocab, scale};
  if (simt::WarpIndex() == kSampleWarps - 1) meanwhile();
  SampleWeight kept = plan.weight;
  // One loop for the three cuts: the code of NarrowCut is large.
  for (CutKind kind = CutKind::kTopK;; kind = static_cast<CutKind>(static_cast<uint32_t>(kind) + 1)) {
    CutGoal cut = {0, true};
    if (kind == CutKind::kTopK) {
      cut = {TopKOf(params, plan.count), false};
    } else if (kind == CutKind::kTopP) {
      const SampleWeight enough = TopPGoal(params.top_p, kept);
      if (plan.min_p_bin != kNoBin) {
        const float min_p_octaves = MinPOctaves(params.min_p);
        simt::SyncThreads();
        if (threadIdx.x == 0) shared.low[0] = shared.high[0] = 0;
        simt::SyncThreads();
        SampleWeight sum = 0;
        ForEachOfRow(shared, from, [&](uint32_t, uint32_t, float octaves) {
          if (octaves <= min_p_octaves) sum += WeightOf(octaves, BinOf(octaves));
        });
        if (sum > 0) AddWeight(&shared.low[0], &shared.high[0], sum);
        simt::SyncThreads();
        kept = LesserOf(kept, WeightOfWords(shared.low[0], shared.high[0]));
      }
      if (params.top_p < 1 && enough < kept) cut.goal = enough;
    } else {
      cut.goal = DrawGoal(params.uniform, kept);
    }
    if (cut.goal == 0) continue;

    CutRange range = {{0, 0}, FallingBits(scale.largest), FallingBits(-kSampleInfinity)};
    NarrowCut(shared, from, cut, range, [](uint32_t falling, uint32_t, uint32_t& value) {
      value = falling;
      return true;
    });
    const uint32_t end = range.least;
    const float octaves = OctavesBelow(scale, LogitOfFallingBits(end));
    const SampleWeight weight = WeightOf(octaves, BinOf(octaves));
    const SampleWeight nth = cut.is_weight ? (cut.goal - range.before.weight + weight - 1) / weight
                                           : cut.goal - range.before.count;
    kept = range.before.weight + nth * weight;
    if (kind != CutKind::kDraw) continue;

    CutRange tokens = {{0, 0}, 0, a.vocab - 1};
    NarrowCut(shared, from, {nth, false}, tokens, [&](uint32_t falling, uint32_t token, uint32_t& value) {
      value = token;
      return falling == end;
    });
    return tokens.least;
  }
}

// Grid: [rows]; a warp each if no row samples, else kSampleThreads.
template <bool kSamples>
TERRACE_KERNEL void TERRACE_BOUNDS((kSamples ? kSampleThreads : simt::kWarp), (kSamples ? 2 : 16))
    SampleChooseKernel(GpuSampleArgs a, SampleScratch scratch) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const uint32_t row = blockIdx.x;
  const GpuSampleRow& params = a.params[row];
  const uint64_t largest = LargestOfRow(a, scratch, row);
  if (largest == kNoPlace) {
    if (threadIdx.x == 0) a.results[row].token = -1;
    return;
  }
  if constexpr (kSamples) {
    TERRACE_SHARED RowSums sums[1];
    if (params.temperature > 0) {
      const auto sum_row = [&] {
        const RowSums of_row = SumsOfRow(a, scratch, row);
        if (simt::Lane() == 0) sums[0] = of_row;
      };
      const SampleScale scale =
          ScaleOf(LogitOfFallingBits(static_cast<uint32_t>(largest >> 32)), params.temperature);
      const uint32_t token = scratch.plans[row].is_listed != 0
                                 ? DrawFromList(scratch, row, params, scale, sum_row)
                                 : DrawFromRow(a, scratch, row, params, scale, sum_row);
      if (simt::WarpIndex() == 0) DescribeRow(a, scratch, row, params, token, sums[0]);
      return;
    }
  }
  if (simt::WarpIndex() > 0) return;
  DescribeRow(a, scratch, row, params, static_cast<uint32_t>(largest), SumsOfRow(a, scratch, row));
}

// ---- Of the host ----

// The arrays at `memory`; their size in bytes goes to `bytes`.
inline SampleScratch SampleScratchAt(void* memory, uint32_t rows, uint32_t vocab, size_t& bytes) {
  const size_t parts = (size_t{vocab} + kSamplePart - 1) / kSamplePart;
  bytes = 0;
  const auto take = [&]<typename T>(T*& array, size_t count) {
    array = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(memory) + bytes);
    bytes += (count * sizeof(T) + 255) / 256 * 256;
  };
  SampleScratch scratch;
  take(scratch.parts, rows * parts);
  take(scratch.tops, rows * parts * kGpuMostTop);
  take(scratch.plans, rows);
  take(scratch.weights, size_t{rows} * kSampleBins);
  take(scratch.counts, size_t{rows} * kSampleBins);
  take(scratch.list, size_t{rows} * kSampleListed);
  return scratch;
}

inline bool IsSampleSupported(const GpuSampleArgs& args) {
  return args.vocab > 0 && args.vocab <= kGpuMostSampleVocab && args.pitch >= args.vocab &&
         args.pitch % 4 == 0 && args.rows <= 65535;
}

// Calls launch(kernel, blocks or 0, rows, threads, bytes of shared memory, args, scratch) for each kernel in
// turn, as long as it returns true. Grid: [blocks, rows], or [rows] for 0 blocks. Which are called depends on
// `args` alone.
template <typename Launch>
bool LaunchSample(const GpuSampleArgs& args, const Launch& launch) {
  size_t bytes;
  const SampleScratch scratch = SampleScratchAt(args.scratch, args.rows, args.vocab, bytes);
  const uint32_t parts = (args.vocab + kSamplePart - 1) / kSamplePart;
  const auto parts_kernel = args.tops ? SamplePartsKernel<true> : SamplePartsKernel<false>;
  const size_t parts_shared = kSampleTopsOffset + (args.tops ? sizeof(SampleTopsShared) : 0);
  if (!launch(parts_kernel, parts, args.rows, kSampleThreads, parts_shared, args, scratch)) return false;
  if (!args.samples) {
    return launch(SampleChooseKernel<false>, 0u, args.rows, simt::kWarp, size_t{0}, args, scratch);
  }
  const uint32_t blocks = args.rows < kBlockPartsRows ? parts : (parts + kBlockParts - 1) / kBlockParts;
  return launch(SampleTallyKernel, blocks, args.rows, kSampleThreads, sizeof(SampleTallyShared), args,
                scratch) &&
         launch(SampleListKernel, blocks, args.rows, kSampleThreads, sizeof(SampleListShared), args,
                scratch) &&
         launch(SampleChooseKernel<true>, 0u, args.rows, kSampleThreads, kSampleChooseShared, args, scratch);
}

}  // namespace terrace
