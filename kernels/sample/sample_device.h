// sample_gpu.h in two kernels, four where a row samples:
//
//   SampleParts  [parts, rows]   reads the raw logits, a part of kSamplePart a block: its largest, sums, most
//                                likely tokens. Then adjusts the part in place; its largest once more.
//   SampleTally  [blocks, rows]  knows the largest of the row, hence every token's weight: adds them to a
//                                histogram of the row over log2(weight). The row's last block finds the bins
//                                where top-k, top-p, min-p and the draw may end.
//   SampleList   [blocks, rows]  lists the tokens of these bins; parts that reach none are not read.
//   SampleChoose [rows]          puts the parts together. Sorts the list and sums its weights: each cut is
//                                a search in the sums.
//
// A row whose list would be longer than kSampleListed (thousands of tokens alike) has its cuts narrowed by
// reading it again.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/sample/sample_gpu.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr uint32_t kSamplePart = 4096, kSampleThreads = 256;
inline constexpr uint32_t kSampleQuads = kSamplePart / 4 / kSampleThreads;  // of a thread: it keeps them
inline constexpr uint32_t kBlockParts = 4, kBlockPartsRows = 32;  // so many a block, from so many rows on
inline constexpr uint32_t kSampleBins = 2048, kNoBin = kSampleBins;
inline constexpr uint32_t kSampleListed = 4096;

// Weights are in units of 2^-44: the sum of kGpuMostSampleVocab of them stays below 2^63.
inline constexpr float kWeightOctaves = 44;
inline constexpr uint32_t kBinsPerOctave = 46;  // 44 * 46 < kSampleBins

inline constexpr float kSampleInfinity = __builtin_inff();
inline constexpr float kLog2E = 1.44269504f;

using SampleWeight = unsigned long long;  // what atomicAdd takes

// Of a part of a row; [rows, parts].
struct SamplePartResult {
  float largest = 0, second = 0;    // of the raw logits
  float sum = 0;                    // of w = exp(logit - largest)
  float weighted = 0;               // of w * log2(w)
  float choice = 0;                 // the largest adjusted logit
  uint32_t token = 0;               // ... the first of them
  uint32_t is_bad = 0, unused = 0;  // has a NaN or +infinity
};

// Bins [first, end); none unless first < end.
struct SampleRange {
  uint32_t first = 0, end = 0;
  SampleWeight weight_between = 0;  // of all tokens before that are in no range
};
// Of a row that samples: where its cuts may end.
struct SamplePlan {
  uint64_t largest = ~uint64_t{0};  // place of the largest adjusted logit
  SampleWeight weight = 0;          // of all tokens
  SampleWeight before_min_p = 0;    // of the bins before min_p_bin
  SampleRange ranges[3];            // rising, apart: of the draw, of top-p or min-p, of top-k
  uint32_t count = 0;               // of all tokens
  uint32_t min_p_bin = kNoBin;      // where min-p ends; kNoBin: behind another cut
  uint32_t top_k_index = 0;         // in the sorted list
  uint32_t is_listed = 0;           // the ranges fit the list
  uint32_t listed = 0;              // so far
  uint32_t tallied = 0;             // blocks of SampleTally
};

struct SampleScratch {
  SamplePartResult* parts = nullptr;  // [rows, parts]
  uint64_t* tops = nullptr;           // [rows, parts, kGpuMostTop] places, rising
  SamplePlan* plans = nullptr;        // [rows]
  SampleWeight* weights = nullptr;    // [rows, kSampleBins]
  uint32_t* counts = nullptr;         // [rows, kSampleBins]
  uint64_t* list = nullptr;           // [rows, kSampleListed] places, in any order
};

// ---- The falling order of the logits, as integers that rise ----

// -0 equals 0.
TERRACE_DEVICE uint32_t FallingBits(float logit) {
  const uint32_t bits = simt::BitsOfFloat(logit + 0.0f);
  return bits >> 31 != 0 ? bits : ~bits & 0x7fffffffu;
}
TERRACE_DEVICE float LogitOfFallingBits(uint32_t falling) {
  return simt::FloatOfBits(falling >> 31 != 0 ? falling : ~falling & 0x7fffffffu);
}
// Rises as the logit falls; of equal logits, with the token.
TERRACE_DEVICE uint64_t PlaceOf(float logit, uint32_t token) {
  return uint64_t{FallingBits(logit)} << 32 | token;
}
inline constexpr uint64_t kNoPlace = ~uint64_t{0};

template <typename T>
TERRACE_DEVICE T LesserOf(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
TERRACE_DEVICE T GreaterOf(T a, T b) {
  return a < b ? b : a;
}

constexpr size_t LargerOf(size_t a, size_t b) { return a < b ? b : a; }  // of the compiler

// One instruction; a NaN loses.
TERRACE_DEVICE float LesserOf(float a, float b) { return fminf(a, b); }
TERRACE_DEVICE float GreaterOf(float a, float b) { return fmaxf(a, b); }

TERRACE_DEVICE uint64_t Shuffle64(uint64_t v, uint32_t lane) {
  const uint32_t low = simt::Shuffle(static_cast<uint32_t>(v), lane);
  const uint32_t high = simt::Shuffle(static_cast<uint32_t>(v >> 32), lane);
  return uint64_t{high} << 32 | low;
}
TERRACE_DEVICE uint64_t LeastOfWarp(uint64_t place) {
  for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) {
    place = LesserOf(place, Shuffle64(place, simt::Lane() ^ mask));
  }
  return place;
}
TERRACE_DEVICE double SumOfWarp(double v) {
  for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) {
    uint64_t bits;
    __builtin_memcpy(&bits, &v, sizeof(v));
    bits = Shuffle64(bits, simt::Lane() ^ mask);
    double other;
    __builtin_memcpy(&other, &bits, sizeof(v));
    v += other;
  }
  return v;
}

// ---- Weights ----

// How a row's adjusted logits become weights; a logit lies so many octaves below the largest.
struct SampleScale {
  float largest = 0;  // finite
  float octaves = 0;  // of a unit of logit
};
TERRACE_DEVICE SampleScale ScaleOf(float largest, float temperature) {
  return {largest, LesserOf(kLog2E / temperature, 3.4e38f)};  // infinity * 0 would be NaN
}
TERRACE_DEVICE float OctavesBelow(const SampleScale& scale, float logit) {
  return (scale.largest - logit) * scale.octaves;
}
// Of fewer than kWeightOctaves: the nearest bin. Not a conversion: those are slow.
TERRACE_DEVICE uint32_t BinOf(float octaves) {
  constexpr float kWholes = 8388608;  // 2^23: the sum's unit is 1
  return simt::BitsOfFloat(fmaf(octaves, kBinsPerOctave, kWholes)) - simt::BitsOfFloat(kWholes);
}
// A bin's weights are counted in steps, of 2^(20 - octave) units but of at least one: a weight has the 24
// bits that its float has.
inline constexpr uint32_t kStepOctaves = 20;
TERRACE_DEVICE uint32_t OctaveOfBin(uint32_t bin) { return LesserOf(bin / kBinsPerOctave, kStepOctaves); }
TERRACE_DEVICE float StepsOfOne(uint32_t bin) {  // 2^(24 + octave)
  return simt::FloatOfBits((127 + 24 + OctaveOfBin(bin)) << 23);
}
TERRACE_DEVICE uint32_t StepsOf(float octaves, uint32_t bin) {
  return GreaterOf(static_cast<uint32_t>(simt::Exp2(-octaves) * StepsOfOne(bin)), 1u);
}
TERRACE_DEVICE SampleWeight WeightOf(float octaves, uint32_t bin) {
  return SampleWeight{StepsOf(octaves, bin)} << (kStepOctaves - OctaveOfBin(bin));
}
// The weight of `count` tokens of a bin, from the low word of their sum of steps. A bin is 1 / kBinsPerOctave
// wide: what its tokens have above the least it may hold is at most 2^24 (2^(0.5 / 46) - 2^(-0.5 / 46)) + 2 *
// 64 < 253,000 each (64 bounds the errors of the floats), which is below 2^32 for those of a block.
static_assert(uint64_t{kBlockParts} * kSamplePart * 253'000 < uint64_t{1} << 32);
TERRACE_DEVICE SampleWeight WeightOfBin(uint32_t bin, uint32_t count, uint32_t low) {
  const float octaves = (static_cast<float>(bin) + 0.5f) * (1.0f / kBinsPerOctave);
  const auto about = static_cast<uint32_t>(simt::Exp2(-octaves) * StepsOfOne(bin));
  const SampleWeight least = SampleWeight{count} * (about > 64 ? about - 64 : 0);
  return (least + (low - static_cast<uint32_t>(least))) << (kStepOctaves - OctaveOfBin(bin));
}

// A 64-bit sum in two words of shared memory, where a 64-bit atomic would be a loop. Most weights are below
// 2^32.
TERRACE_DEVICE void AddWeight(uint32_t* low, uint32_t* high, SampleWeight weight) {
  const auto add = static_cast<uint32_t>(weight);
  const uint32_t carry = simt::AtomicAdd(low, add) > ~add;
  const uint32_t add_high = static_cast<uint32_t>(weight >> 32) + carry;
  if (add_high != 0) simt::AtomicAdd(high, add_high);
}
TERRACE_DEVICE SampleWeight WeightOfWords(uint32_t low, uint32_t high) {
  return SampleWeight{high} << 32 | low;
}

// ---- A part of a row ----

TERRACE_DEVICE uint32_t PartsOf(const GpuSampleArgs& a) { return (a.vocab + kSamplePart - 1) / kSamplePart; }

// Of element 4 q + e of a thread, within the part.
TERRACE_DEVICE uint32_t PartIndex(uint32_t q, uint32_t e) {
  return 4 * (q * kSampleThreads + threadIdx.x) + e;
}

// -infinity behind the end. `kIsStable`: no one writes the logits while the kernel runs.
template <bool kIsStable>
TERRACE_DEVICE float4 LoadQuad(const float* logits, uint32_t count, uint32_t q) {
  float4 quad = {-kSampleInfinity, -kSampleInfinity, -kSampleInfinity, -kSampleInfinity};
  if (PartIndex(q, 0) < count) {
    const auto* from = reinterpret_cast<const float4*>(logits + PartIndex(q, 0));
    if constexpr (kIsStable) {
      quad = simt::LoadReadOnly(from);
    } else {
      quad = *from;
    }
  }
  return quad;
}
template <bool kIsStable>
TERRACE_DEVICE void LoadPart(const float* logits, uint32_t count, float (&x)[4 * kSampleQuads]) {
  TERRACE_UNROLL
  for (uint32_t q = 0; q < kSampleQuads; ++q) {
    const float4 quad = LoadQuad<kIsStable>(logits, count, q);
    x[4 * q] = quad.x, x[4 * q + 1] = quad.y, x[4 * q + 2] = quad.z, x[4 * q + 3] = quad.w;
  }
  if (count == kSamplePart) return;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 4 * kSampleQuads; ++i) {
    if (PartIndex(i / 4, i % 4) >= count) x[i] = -kSampleInfinity;
  }
}

// ---- Adjustments ----

TERRACE_DEVICE float SaturatedLogit(double logit) {
  constexpr double kLargest = 3.4028234663852886e38;
  if (logit == -static_cast<double>(kSampleInfinity)) return -kSampleInfinity;
  return static_cast<float>(logit < -kLargest ? -kLargest : logit > kLargest ? kLargest : logit);
}
TERRACE_DEVICE float AdjustedLogit(float raw, const GpuLogitAdjustment& by) {
  double logit = SaturatedLogit(static_cast<double>(raw) + by.bias);
  logit = logit > 0 ? logit / by.repetition : logit * by.repetition;
  return SaturatedLogit(logit - by.subtract);
}

// Of a warp: the first of adjustments [begin, end) of at least `token`; `end` if none.
TERRACE_DEVICE uint32_t FirstAdjustment(const GpuLogitAdjustment* adjustments, uint32_t begin, uint32_t end,
                                        uint32_t token) {
  while (begin < end) {
    const uint32_t step = (end - begin + simt::kWarp - 1) / simt::kWarp, probe = begin + simt::Lane() * step;
    const uint32_t below =
        simt::Ballot(probe < end && static_cast<uint32_t>(adjustments[probe].token) < token);
    uint32_t probes_below = 0;  // the first ones
    while (probes_below < simt::kWarp && (below >> probes_below & 1) != 0) ++probes_below;
    if (probes_below == 0) return begin;
    end = LesserOf(end, begin + probes_below * step);
    begin += (probes_below - 1) * step + 1;
  }
  return begin;
}

// Of a warp: the token's logit before adjustments, after SampleParts.
TERRACE_DEVICE float RawLogit(const GpuSampleArgs& a, const GpuSampleRow& params, uint32_t row,
                              uint32_t token) {
  const uint32_t i = FirstAdjustment(a.adjustments, params.adjustments_begin, params.adjustments_end, token);
  if (i < params.adjustments_end && static_cast<uint32_t>(a.adjustments[i].token) == token) {
    return a.adjustments[i].raw;
  }
  return a.logits[uint64_t{row} * a.pitch + token];
}

// ---- SampleParts ----

inline constexpr uint32_t kSampleWarps = kSampleThreads / simt::kWarp;
inline constexpr uint32_t kTopGroupThreads = 4, kTopGroups = kSampleThreads / kTopGroupThreads;
// Only the elements of the kGpuMostTop groups of threads with the best elements can be among the best.
inline constexpr uint32_t kTopCandidates = kGpuMostTop * kTopGroupThreads * 4 * kSampleQuads;

struct SamplePartsShared {
  float first[kSampleWarps], second[kSampleWarps], sum[kSampleWarps], weighted[kSampleWarps];
  uint32_t not_token;  // ~ of the first token with the largest logit
};
struct SampleTopsShared {
  uint64_t groups[kTopGroups];
  uint64_t candidates[kTopCandidates];
  uint64_t cut;
  uint32_t count;
};
inline constexpr size_t kSampleTopsOffset = 256;
static_assert(sizeof(SamplePartsShared) <= kSampleTopsOffset);

// The largest and the second of the block's elements, in every thread.
struct LargestTwo {
  float first = -kSampleInfinity, second = -kSampleInfinity;
};
TERRACE_DEVICE void Include(LargestTwo& two, float first, float second) {
  two.second = GreaterOf(GreaterOf(two.second, second), LesserOf(two.first, first));
  two.first = GreaterOf(two.first, first);
}
TERRACE_DEVICE LargestTwo LargestOfBlock(SamplePartsShared& shared, const float (&x)[4 * kSampleQuads]) {
  LargestTwo two;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 4 * kSampleQuads; ++i) {
    two.second = GreaterOf(two.second, LesserOf(two.first, x[i]));
    two.first = GreaterOf(two.first, x[i]);
  }
  for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) {
    const float first = simt::ShuffleXor(two.first, mask), second = simt::ShuffleXor(two.second, mask);
    Include(two, first, second);
  }
  if (simt::Lane() == 0) {
    shared.first[simt::WarpIndex()] = two.first;
    shared.second[simt::WarpIndex()] = two.second;
  }
  simt::SyncThreads();
  two = {};
  for (uint32_t warp = 0; warp < kSampleWarps; ++warp) Include(two, shared.first[warp], shared.second[warp]);
  return two;
}

// Into shared.not_token, which is 0, by the next barrier.
TERRACE_DEVICE void FindFirst(SamplePartsShared& shared, const float (&x)[4 * kSampleQuads], uint32_t begin,
                              float logit) {
  uint32_t index = kSamplePart;
  TERRACE_UNROLL
  for (uint32_t i = 4 * kSampleQuads; i-- > 0;) {
    if (x[i] == logit) index = PartIndex(i / 4, i % 4);
  }
  if (index < kSamplePart) simt::AtomicMax(&shared.not_token, ~(begin + index));
}

// The kGpuMostTop best of a part, rising, kNoPlace behind them. The best of a group of threads are at least
// as many elements as groups: what comes after the kGpuMostTop-th of them is not wanted.
TERRACE_DEVICE void FindTops(SampleTopsShared& shared, const float (&x)[4 * kSampleQuads], uint32_t begin,
                             uint32_t count, uint64_t* tops) {
  uint64_t best = kNoPlace;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 4 * kSampleQuads; ++i) {
    const uint32_t index = PartIndex(i / 4, i % 4);
    if (index < count) best = LesserOf(best, PlaceOf(x[i], begin + index));
  }
  for (uint32_t mask = 1; mask < kTopGroupThreads; mask *= 2) {
    best = LesserOf(best, Shuffle64(best, simt::Lane() ^ mask));
  }
  if (threadIdx.x % kTopGroupThreads == 0) shared.groups[threadIdx.x / kTopGroupThreads] = best;
  if (threadIdx.x == 0) {
    shared.cut = kNoPlace - 1;
    shared.count = 0;
  }
  simt::SyncThreads();
  if (threadIdx.x < kTopGroups) {
    const uint64_t mine = shared.groups[threadIdx.x];
    uint32_t better = 0;
    for (uint32_t group = 0; group < kTopGroups; ++group) better += shared.groups[group] < mine ? 1 : 0;
    if (better == kGpuMostTop - 1 && mine != kNoPlace) shared.cut = mine;
  }
  simt::SyncThreads();
  const uint64_t cut = shared.cut;
  const float least = LogitOfFallingBits(static_cast<uint32_t>(cut >> 32));
  const bool takes_all = cut == kNoPlace - 1;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 4 * kSampleQuads; ++i) {
    const uint32_t index = PartIndex(i / 4, i % 4);
    if (index >= count || !(takes_all || x[i] >= least)) continue;
    const uint64_t place = PlaceOf(x[i], begin + index);
    if (place <= cut) shared.candidates[simt::AtomicAdd(&shared.count, 1u)] = place;
  }
  simt::SyncThreads();
  const uint32_t candidates = shared.count;
  for (uint32_t i = threadIdx.x; i < candidates; i += kSampleThreads) {
    const uint64_t mine = shared.candidates[i];
    uint32_t better = 0;
    for (uint32_t j = 0; j < candidates; ++j) better += shared.candidates[j] < mine ? 1 : 0;
    if (better < kGpuMostTop) tops[better] = mine;
  }
  if (threadIdx.x < kGpuMostTop && threadIdx.x >= candidates) tops[threadIdx.x] = kNoPlace;
}

// Adjusts the logits of tokens [begin, begin + count), if any; returns whether any was. The block's earlier
// reads of them are done; its later ones come after a barrier.
TERRACE_DEVICE bool AdjustPart(const GpuSampleArgs& a, const GpuSampleRow& params, float* row, uint32_t begin,
                               uint32_t count) {
  if (params.adjustments_begin >= params.adjustments_end) return false;
  GpuLogitAdjustment* const adjustments = a.adjustments;
  const uint32_t first =
      FirstAdjustment(adjustments, params.adjustments_begin, params.adjustments_end, begin);
  const uint32_t end = FirstAdjustment(adjustments, first, params.adjustments_end, begin + count);
  for (uint32_t i = first + threadIdx.x; i < end; i += kSampleThreads) {
    const int32_t token = adjustments[i].token;
    if (i > first && adjustments[i - 1].token == token) continue;
    const float raw = row[token];
    float logit = raw;
    for (uint32_t j = i; j < end && adjustments[j].token == token; ++j) {
      logit = AdjustedLogit(logit, adjustments[j]);
    }
    adjustments[i].raw = raw;
    row[token] = logit;
  }
  return first < end;
}

// Grid: [parts, rows].
template <bool kTops>
TERRACE_KERNEL void TERRACE_BOUNDS(kSampleThreads, (kTops ? 4 : 5))
    SamplePartsKernel(GpuSampleArgs a, SampleScratch scratch) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  auto& shared = *reinterpret_cast<SamplePartsShared*>(simt::DynamicShared());
  const uint32_t row = blockIdx.y, begin = blockIdx.x * kSamplePart;
  const uint32_t count = LesserOf(a.vocab - begin, kSamplePart);
  float* const logits = a.logits + uint64_t{row} * a.pitch;

  float x[4 * kSampleQuads];
  LoadPart<false>(logits + begin, count, x);
  const GpuSampleRow params = a.params[row];
  if (threadIdx.x == 0) shared.not_token = 0;
  if (a.samples && params.temperature > 0) {  // what SampleTally adds to
    for (uint32_t i = blockIdx.x * kSampleThreads + threadIdx.x; i < kSampleBins;
         i += gridDim.x * kSampleThreads) {
      scratch.counts[row * kSampleBins + i] = 0;
      scratch.weights[row * kSampleBins + i] = 0;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) scratch.plans[row] = {};
  }

  const LargestTwo two = LargestOfBlock(shared, x);
  const float base = two.first == -kSampleInfinity ? 0 : two.first;
  float sum = 0, weighted = 0;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 4 * kSampleQuads; ++i) {
    float log2_weight = (x[i] - base) * kLog2E;             // NaN for a NaN and for +infinity
    log2_weight = log2_weight < -200 ? -200 : log2_weight;  // 0 * -infinity would be NaN
    const float weight = simt::Exp2(log2_weight);
    sum += weight;
    weighted += weight * log2_weight;
  }
  FindFirst(shared, x, begin, two.first);
  sum = simt::WarpSum(sum);
  weighted = simt::WarpSum(weighted);
  if (simt::Lane() == 0) {
    shared.sum[simt::WarpIndex()] = sum;
    shared.weighted[simt::WarpIndex()] = weighted;
  }
  simt::SyncThreads();
  SamplePartResult result;
  if (threadIdx.x == 0) {
    result = {.largest = two.first, .second = two.second, .choice = two.first, .token = ~shared.not_token};
    for (uint32_t warp = 0; warp < kSampleWarps; ++warp) {
      result.sum += shared.sum[warp];
      result.weighted += shared.weighted[warp];
    }
    result.is_bad = result.sum == result.sum ? 0 : 1;
    shared.not_token = 0;
  }
  const uint32_t part = row * gridDim.x + blockIdx.x;
  if constexpr (kTops) {
    auto& tops = *reinterpret_cast<SampleTopsShared*>(simt::DynamicShared() + kSampleTopsOffset);
    if (params.top > 0) FindTops(tops, x, begin, count, scratch.tops + part * kGpuMostTop);
  }

  if (AdjustPart(a, params, logits, begin, count)) {
    simt::SyncThreads();
    LoadPart<false>(logits + begin, count, x);
    const float choice = LargestOfBlock(shared, x).first;
    FindFirst(shared, x, begin, choice);
    simt::SyncThreads();
    if (threadIdx.x == 0) {
      result.choice = choice;
      result.token = ~shared.not_token;
    }
  }
  if (threadIdx.x == 0) scratch.parts[part] = result;
}

// ---- The parts of a row, together ----

// Of a warp: the first largest adjusted logit; kNoPlace for a row with a NaN, +infinity or nothing finite to
// choose.
TERRACE_DEVICE uint64_t LargestOfRow(const GpuSampleArgs& a, const SampleScratch& scratch, uint32_t row) {
  const uint32_t parts = PartsOf(a);
  uint64_t place = kNoPlace;
  bool is_bad = false;
  for (uint32_t i = simt::Lane(); i < parts; i += simt::kWarp) {
    const SamplePartResult& part = scratch.parts[row * parts + i];
    is_bad |= part.is_bad != 0;
    if (part.choice > -kSampleInfinity) place = LesserOf(place, PlaceOf(part.choice, part.token));
  }
  place = LeastOfWarp(place);
  return simt::Ballot(is_bad) != 0 ? kNoPlace : place;
}

// Of a warp: the row's most likely tokens, from those of its parts. Lane i has parts i, i + 32, ... .
TERRACE_DEVICE void MergeTops(const GpuSampleArgs& a, const SampleScratch& scratch, uint32_t row,
                              uint32_t top, double log_sum) {
  static_assert(kGpuMostSampleVocab / kSamplePart <= 6 * simt::kWarp && kGpuMostTop < 32,
                "taken: 5 bits a part");
  const uint32_t parts = PartsOf(a), lane = simt::Lane();
  const uint64_t* const tops = scratch.tops + uint64_t{row} * parts * kGpuMostTop;
  uint32_t taken = 0;  // so many of the tokens of each of the lane's parts
  const auto best_of_lane = [&](uint32_t& slot) {
    uint64_t best = kNoPlace;
    for (uint32_t i = 0, part = lane; part < parts; ++i, part += simt::kWarp) {
      const uint32_t rank = taken >> (5 * i) & 31;
      if (rank == kGpuMostTop) continue;
      const uint64_t place = tops[part * kGpuMostTop + rank];
      if (place < best) best = place, slot = i;
    }
    return best;
  };
  uint32_t slot = 0;
  uint64_t mine = best_of_lane(slot);
  for (uint32_t rank = 0; rank < LesserOf(top, kGpuMostTop); ++rank) {
    const uint64_t best = LeastOfWarp(mine);
    const float logit = LogitOfFallingBits(static_cast<uint32_t>(best >> 32));
    if (lane == 0) {
      a.results[row].top_tokens[rank] = best == kNoPlace ? -1 : static_cast<int32_t>(best & 0xffffffffu);
      a.results[row].top_logprobs[rank] =
          best == kNoPlace ? -kSampleInfinity : static_cast<float>(static_cast<double>(logit) - log_sum);
    }
    if (mine == best && best != kNoPlace) {
      taken += 1u << (5 * slot);
      mine = best_of_lane(slot);
    }
  }
}

// Of the raw logits.
struct RowSums {
  double log_sum;
  float margin, entropy;
};
// Of a warp.
TERRACE_DEVICE RowSums SumsOfRow(const GpuSampleArgs& a, const SampleScratch& scratch, uint32_t row) {
  const uint32_t parts = PartsOf(a);
  const SamplePartResult* const of_row = scratch.parts + row * parts;
  LargestTwo two;
  for (uint32_t i = simt::Lane(); i < parts; i += simt::kWarp)
    Include(two, of_row[i].largest, of_row[i].second);
  for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) {
    const float first = simt::ShuffleXor(two.first, mask), second = simt::ShuffleXor(two.second, mask);
    Include(two, first, second);
  }
  double sum = 0, weighted = 0;  // of w = exp(logit - largest) and w ln(w)
  for (uint32_t i = simt::Lane(); i < parts; i += simt::kWarp) {
    const SamplePartResult& part = of_row[i];
    if (part.largest == -kSampleInfinity) continue;
    const double below = static_cast<double>(part.largest) - static_cast<double>(two.first);
    const double scale = std::exp(below);
    sum += scale * static_cast<double>(part.sum);
    weighted += scale * (static_cast<double>(part.weighted) * 0.6931471805599453 +
                         static_cast<double>(part.sum) * below);
  }
  sum = SumOfWarp(sum);
  weighted = SumOfWarp(weighted);
  const double log_of_sum = std::log(sum);
  return {static_cast<double>(two.first) + log_of_sum, two.first - two.second,
          static_cast<float>(log_of_sum - weighted / sum)};
}

// Of a warp.
TERRACE_DEVICE void DescribeRow(const GpuSampleArgs& a, const SampleScratch& scratch, uint32_t row,
                                const GpuSampleRow& params, uint32_t token, const RowSums& sums) {
  const float raw = RawLogit(a, params, row, token);
  if (simt::Lane() == 0) {
    GpuSampleResult& result = a.results[row];
    result.token = static_cast<int32_t>(token);
    result.logprob = static_cast<float>(static_cast<double>(raw) - sums.log_sum);
    result.margin = sums.margin;
    result.entropy = sums.entropy;
  }
  if (a.tops && params.top > 0) MergeTops(a, scratch, row, params.top, sums.log_sum);
}

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
