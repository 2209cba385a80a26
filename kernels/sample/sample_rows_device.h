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

}  // namespace terrace
