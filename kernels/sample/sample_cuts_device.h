// Where the cuts of a row lie: sums of weights over bins (SampleTally), what top-k, min-p, top-p and the draw
// may end in, and a list of the tokens of those bins (SampleList). sample_rows_device.h says how the kernels
// follow each other.
#pragma once

#include <cstdint>

#include "kernels/sample/sample_rows_device.h"

namespace terrace {

// ---- Sums over the bins of a row ----

// Lanes in a row have bins in a row that many apart: padded, they lie in different banks.
inline constexpr uint32_t kThreadBins = kSampleBins / kSampleThreads;
inline constexpr uint32_t kBinSlots = kSampleBins + kSampleThreads;
TERRACE_DEVICE uint32_t BinSlot(uint32_t bin) { return bin + bin / kThreadBins; }

// Of the tokens up to and with each bin.
struct BinSums {
  SampleWeight weights[kBinSlots];
  uint32_t counts[kBinSlots];
};
struct SampleTotal {
  SampleWeight weight;
  uint32_t count;
};
TERRACE_DEVICE SampleTotal Through(const BinSums& sums, uint32_t bin) {
  return {sums.weights[BinSlot(bin)], sums.counts[BinSlot(bin)]};
}
TERRACE_DEVICE SampleTotal Before(const BinSums& sums, uint32_t bin) {
  return bin > 0 ? Through(sums, bin - 1) : SampleTotal{0, 0};
}

// Of a warp: of the lanes up to and with this one.
TERRACE_DEVICE SampleWeight SumThrough(SampleWeight v) {
  for (uint32_t distance = 1; distance < simt::kWarp; distance *= 2) {
    const SampleWeight before = Shuffle64(v, (simt::Lane() - distance) % simt::kWarp);
    if (simt::Lane() >= distance) v += before;
  }
  return v;
}
TERRACE_DEVICE uint32_t SumThrough(uint32_t v) {
  for (uint32_t distance = 1; distance < simt::kWarp; distance *= 2) {
    const uint32_t before = simt::Shuffle(v, (simt::Lane() - distance) % simt::kWarp);
    if (simt::Lane() >= distance) v += before;
  }
  return v;
}

// Of a block of kSampleThreads: sets `sums` from a thread's own bins, [threadIdx.x * kThreadBins, ...). What
// was in `sums` may be overwritten; barriers are behind the caller, none is needed after.
TERRACE_DEVICE void SumBins(BinSums& sums, const SampleWeight (&weights)[kThreadBins],
                            const uint32_t (&counts)[kThreadBins]) {
  SampleTotal mine = {0, 0};
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kThreadBins; ++i) {
    mine.weight += weights[i];
    mine.count += counts[i];
  }
  const SampleWeight weight_through = SumThrough(mine.weight);
  const uint32_t count_through = SumThrough(mine.count);
  const uint32_t warp = simt::WarpIndex();
  if (simt::Lane() == simt::kWarp - 1) {
    sums.weights[warp] = weight_through;
    sums.counts[warp] = count_through;
  }
  simt::SyncThreads();
  SampleTotal before = {weight_through - mine.weight, count_through - mine.count};
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kSampleWarps; ++i) {
    if (i < warp) {
      before.weight += sums.weights[i];
      before.count += sums.counts[i];
    }
  }
  simt::SyncThreads();
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kThreadBins; ++i) {
    before.weight += weights[i];
    before.count += counts[i];
    sums.weights[BinSlot(threadIdx.x * kThreadBins + i)] = before.weight;
    sums.counts[BinSlot(threadIdx.x * kThreadBins + i)] = before.count;
  }
  simt::SyncThreads();
}

// Of a warp: the first of [0, end) for which `reaches`, which stays true once it is; `end` if none.
template <typename Reaches>
TERRACE_DEVICE uint32_t FirstOf(uint32_t end, const Reaches& reaches) {
  uint32_t begin = 0;
  while (begin < end) {
    const uint32_t step = (end - begin + simt::kWarp - 1) / simt::kWarp;
    const uint32_t probe = begin + (simt::Lane() + 1) * step - 1;  // the last of the lane's
    const uint32_t not_yet = simt::Ballot(probe < end && !reaches(probe));
    begin += static_cast<uint32_t>(__builtin_popcount(not_yet)) * step;
    end = LesserOf(end, begin + step - 1);
  }
  return LesserOf(begin, end);
}
TERRACE_DEVICE uint32_t BinOfWeight(const BinSums& sums, SampleWeight goal) {
  return FirstOf(kSampleBins - 1, [&](uint32_t bin) { return sums.weights[BinSlot(bin)] >= goal; });
}
TERRACE_DEVICE uint32_t BinOfCount(const BinSums& sums, uint32_t goal) {
  return FirstOf(kSampleBins - 1, [&](uint32_t bin) { return sums.counts[BinSlot(bin)] >= goal; });
}

// ---- The cuts ----

// top-k keeps so many tokens of `count`; 0: all.
TERRACE_DEVICE uint32_t TopKOf(const GpuSampleRow& params, uint32_t count) {
  const auto top_k = static_cast<uint32_t>(params.top_k);
  return params.top_k > 0 && top_k < count ? top_k : 0;
}
// top-p keeps tokens up to the first with which they weigh so much, of what top-k kept.
TERRACE_DEVICE SampleWeight TopPGoal(float top_p, SampleWeight kept) {
  return GreaterOf(
      static_cast<SampleWeight>(std::ceil(static_cast<double>(top_p) * static_cast<double>(kept))),
      SampleWeight{1});
}
// The draw is the first token with which the tokens weigh so much, of `kept` > 0.
TERRACE_DEVICE SampleWeight DrawGoal(double uniform, SampleWeight kept) {
  return LesserOf(static_cast<SampleWeight>(uniform * static_cast<double>(kept)), kept - 1) + 1;
}
// min-p keeps tokens of at most so many octaves; all have fewer than kWeightOctaves.
TERRACE_DEVICE float MinPOctaves(float min_p) {
  return min_p > 0 ? GreaterOf(-log2f(min_p), 0.0f) : kWeightOctaves;
}

TERRACE_DEVICE void Join(SampleRange& into, SampleRange& earlier) {
  if (earlier.first >= into.end || earlier.end <= into.first || earlier.first >= earlier.end) return;
  into.first = LesserOf(into.first, earlier.first);
  earlier = {};
}

// Of a warp: which bins hold the ends of the cuts. What a cut keeps is known but for the tokens of a bin or
// two, so that the cut behind it has a range of goals, which rise with it: bins on end. min-p's sums are
// known but for its bin.
TERRACE_DEVICE void PlanCuts(const BinSums& sums, const GpuSampleRow& params, SamplePlan& plan) {
  const SampleTotal all = Through(sums, kSampleBins - 1);
  SampleWeight least = all.weight, most = all.weight;  // what is kept
  uint32_t last = kSampleBins - 1;                     // bin of what is kept
  SampleRange top_k, likely, draw;

  const uint32_t count = TopKOf(params, all.count);
  if (count > 0) {
    last = BinOfCount(sums, count);
    top_k = {.first = last, .end = last + 1};
    least = Before(sums, last).weight;
    most = Through(sums, last).weight;
  }
  if (params.top_p < 1) {
    likely.first = BinOfWeight(sums, TopPGoal(params.top_p, least));
    last = BinOfWeight(sums, TopPGoal(params.top_p, most));
    likely.end = last + 1;
    least = LesserOf(least, Before(sums, likely.first).weight);
    most = LesserOf(most, Through(sums, last).weight);
  }
  plan.min_p_bin = kNoBin;
  const float min_p_octaves = MinPOctaves(params.min_p);
  if (min_p_octaves < kWeightOctaves && BinOf(min_p_octaves) <= last) {
    const uint32_t bin = BinOf(min_p_octaves);
    plan.min_p_bin = bin;
    plan.before_min_p = Before(sums, bin).weight;
    least = LesserOf(least, plan.before_min_p);
    most = LesserOf(most, Through(sums, bin).weight);
    if (likely.first >= likely.end || bin < likely.first) likely = {.first = bin, .end = bin + 1};
  }
  draw.first = BinOfWeight(sums, DrawGoal(params.uniform, GreaterOf(least, SampleWeight{1})));
  draw.end = BinOfWeight(sums, DrawGoal(params.uniform, most)) + 1;

  // Each ends where or before the next one does.
  Join(likely, draw);
  Join(top_k, likely);
  Join(top_k, draw);
  SampleTotal listed = {0, 0};
  const auto place = [&](SampleRange& range) {
    if (range.first >= range.end) return;
    const SampleTotal before = Before(sums, range.first), through = Through(sums, range.end - 1);
    range.weight_between = before.weight - listed.weight;
    if (count > 0) plan.top_k_index = count - 1 - (before.count - listed.count);  // the last range's stays
    listed.weight += through.weight - before.weight;
    listed.count += through.count - before.count;
  };
  place(draw);
  place(likely);
  place(top_k);
  plan.ranges[0] = draw;
  plan.ranges[1] = likely;
  plan.ranges[2] = top_k;
  plan.weight = all.weight;
  plan.count = all.count;
  plan.is_listed = listed.count <= kSampleListed ? 1 : 0;
}

// ---- SampleTally ----

struct SampleTallyShared {
  union {
    struct {
      // Behind the bins, what has no weight: a place for each lane.
      uint32_t counts[kSampleBins + simt::kWarp], low[kSampleBins + simt::kWarp];
    };
    BinSums sums;
  };
  uint32_t tallied;
};

// A block of SampleTally and SampleList has parts [begin, end) of a row, up to kBlockParts.
struct BlockParts {
  uint32_t begin, end;
};
TERRACE_DEVICE BlockParts PartsOfBlock(const GpuSampleArgs& a) {
  const uint32_t parts = PartsOf(a), each = (parts + gridDim.x - 1) / gridDim.x;
  return {blockIdx.x * each, LesserOf(parts, (blockIdx.x + 1) * each)};
}

// Grid: [blocks, rows]. The rows that SampleParts read last come first: they are in the cache.
TERRACE_KERNEL void TERRACE_BOUNDS(kSampleThreads, 4)
    SampleTallyKernel(GpuSampleArgs a, SampleScratch scratch) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  auto& shared = *reinterpret_cast<SampleTallyShared*>(simt::DynamicShared());
  const uint32_t row = gridDim.y - 1 - blockIdx.y;
  const float temperature = a.params[row].temperature;
  if (!(temperature > 0)) return;
  const BlockParts parts = PartsOfBlock(a);
  const float* const logits = a.logits + uint64_t{row} * a.pitch;
  float4 quads[kSampleQuads];  // loaded a part ahead
  const auto load = [&](uint32_t part, uint32_t q) {
    const uint32_t begin = part * kSamplePart;
    quads[q] =
        LoadQuad<true>(logits + begin, part < parts.end ? LesserOf(a.vocab - begin, kSamplePart) : 0, q);
  };
  TERRACE_UNROLL
  for (uint32_t q = 0; q < kSampleQuads; ++q) load(parts.begin, q);
  for (uint32_t i = threadIdx.x; i < kSampleBins; i += kSampleThreads) shared.counts[i] = shared.low[i] = 0;
  const uint64_t largest = LargestOfRow(a, scratch, row);
  if (largest == kNoPlace) return;
  const SampleScale scale = ScaleOf(LogitOfFallingBits(static_cast<uint32_t>(largest >> 32)), temperature);
  simt::SyncThreads();

  const auto add = [&](float logit) {  // without a branch: several tokens are under way
    const float octaves = LesserOf(OctavesBelow(scale, logit), kWeightOctaves);
    const uint32_t bin = BinOf(octaves), steps = StepsOf(octaves, bin);
    const uint32_t slot = octaves < kWeightOctaves ? bin : kSampleBins + simt::Lane();
    simt::AtomicAdd(&shared.counts[slot], 1u);
    simt::AtomicAdd(&shared.low[slot], steps);
  };
  for (uint32_t part = parts.begin; part < parts.end; ++part) {
    TERRACE_UNROLL
    for (uint32_t q = 0; q < kSampleQuads; ++q) {
      float4 quad = quads[q];
      const uint32_t end = part * kSamplePart + PartIndex(q, 0) + 4;
      if (end > a.vocab) {
        quad.w = -kSampleInfinity;
        if (end > a.vocab + 1) quad.z = -kSampleInfinity;
        if (end > a.vocab + 2) quad.y = -kSampleInfinity;
      }
      load(part + 1, q);
      add(quad.x);
      add(quad.y);
      add(quad.z);
      add(quad.w);
    }
  }
  simt::SyncThreads();
  for (uint32_t i = threadIdx.x; i < kSampleBins; i += kSampleThreads) {
    const uint32_t count = shared.counts[i];
    if (count == 0) continue;
    simt::AtomicAdd(&scratch.counts[row * kSampleBins + i], count);
    simt::AtomicAdd(&scratch.weights[row * kSampleBins + i], WeightOfBin(i, count, shared.low[i]));
  }

  // The row's last block knows all of it.
  SamplePlan& plan = scratch.plans[row];
  simt::ThreadFence();
  simt::SyncThreads();
  if (threadIdx.x == 0) shared.tallied = simt::AtomicAdd(&plan.tallied, 1u);
  simt::SyncThreads();
  if (shared.tallied + 1 < gridDim.x) return;
  simt::ThreadFence();
  SampleWeight weights[kThreadBins];
  uint32_t counts[kThreadBins];
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kThreadBins; ++i) {
    const uint32_t bin = row * kSampleBins + threadIdx.x * kThreadBins + i;
    weights[i] = scratch.weights[bin];
    counts[i] = scratch.counts[bin];
  }
  SumBins(shared.sums, weights, counts);
  if (threadIdx.x >= simt::kWarp) return;
  SamplePlan found;
  PlanCuts(shared.sums, a.params[row], found);
  if (threadIdx.x == 0) {
    found.largest = largest;
    plan = found;
  }
}

// ---- SampleList ----

struct SampleListShared {
  uint64_t list[kSampleListed];
  uint32_t listed, begin;
};

TERRACE_DEVICE bool IsIn(const SampleRange& range, uint32_t bin) {
  return bin - range.first < range.end - range.first;
}

// Grid: [blocks, rows].
TERRACE_KERNEL void TERRACE_BOUNDS(kSampleThreads, 4)
    SampleListKernel(GpuSampleArgs a, SampleScratch scratch) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  auto& shared = *reinterpret_cast<SampleListShared*>(simt::DynamicShared());
  const uint32_t row = blockIdx.y;
  const float temperature = a.params[row].temperature;
  if (!(temperature > 0)) return;
  SamplePlan& plan = scratch.plans[row];
  const uint64_t largest = plan.largest;
  if (largest == kNoPlace || plan.is_listed == 0) return;
  const SampleScale scale = ScaleOf(LogitOfFallingBits(static_cast<uint32_t>(largest >> 32)), temperature);
  const SampleRange first = plan.ranges[0], second = plan.ranges[1], third = plan.ranges[2];
  const uint32_t end = GreaterOf(GreaterOf(first.end, second.end), third.end);
  const BlockParts parts = PartsOfBlock(a);
  uint32_t reaching = 0;  // bit i: part begin + i has such tokens, or may have
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kBlockParts; ++i) {
    if (parts.begin + i >= parts.end) continue;
    const float best = OctavesBelow(scale, scratch.parts[row * PartsOf(a) + parts.begin + i].choice);
    if (best < kWeightOctaves && BinOf(best) < end) reaching |= 1u << i;
  }
  if (reaching == 0) return;
  if (threadIdx.x == 0) shared.listed = 0;
  simt::SyncThreads();

  for (uint32_t part = parts.begin; part < parts.end; ++part) {
    if ((reaching >> (part - parts.begin) & 1) == 0) continue;
    const uint32_t begin = part * kSamplePart;
    float x[4 * kSampleQuads];
    LoadPart<true>(a.logits + uint64_t{row} * a.pitch + begin, LesserOf(a.vocab - begin, kSamplePart), x);
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4 * kSampleQuads; ++i) {
      const float octaves = OctavesBelow(scale, x[i]);
      if (!(octaves < kWeightOctaves)) continue;
      const uint32_t bin = BinOf(octaves);
      if (!IsIn(first, bin) && !IsIn(second, bin) && !IsIn(third, bin)) continue;
      shared.list[simt::AtomicAdd(&shared.listed, 1u)] = PlaceOf(x[i], begin + PartIndex(i / 4, i % 4));
    }
  }
  simt::SyncThreads();
  const uint32_t listed = shared.listed;
  if (listed == 0) return;
  if (threadIdx.x == 0) shared.begin = simt::AtomicAdd(&plan.listed, listed);
  simt::SyncThreads();
  uint64_t* const to = scratch.list + uint64_t{row} * kSampleListed + shared.begin;
  for (uint32_t i = threadIdx.x; i < listed; i += kSampleThreads) to[i] = shared.list[i];
}

}  // namespace terrace
