// Routing in two kernels: a warp chooses a token's experts, whose logits it keeps in registers; then a block
// for each expert collects its pairs. Each of those blocks counts all experts' pairs, so that none waits for
// another.
#pragma once

#include "kernels/moe/route_experts_gpu.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr uint32_t kRouteThreads = 128, kGroupPairsThreads = 256;
inline constexpr uint32_t kNoExpert = 0xffffffff;

struct RoutedLogit {
  float logit;
  uint32_t expert;
};

// Which of two is chosen first; kNoExpert with -infinity is behind all.
TERRACE_DEVICE bool IsBefore(const RoutedLogit& a, const RoutedLogit& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert);
}

// Grid: [tokens / warps of a block]; up to 32 * kPerLane experts.
template <uint32_t kPerLane>
TERRACE_KERNEL void TERRACE_BOUNDS(kRouteThreads, 1) RouteTokensKernel(GpuRouteExpertsArgs a) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  constexpr float kInfinity = __builtin_inff();
  const uint32_t lane = simt::Lane();
  const uint32_t token = blockIdx.x * (kRouteThreads / simt::kWarp) + simt::WarpIndex();
  if (token >= a.tokens) return;
  const float* const from = a.logits + uint64_t{token} * a.pitch;
  float logits[kPerLane], largest = -kInfinity;
  bool has_nan = false;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kPerLane; ++i) {
    const uint32_t expert = i * simt::kWarp + lane;
    logits[i] = expert < a.experts ? from[expert] : -kInfinity;
    has_nan |= logits[i] != logits[i];
    largest = logits[i] > largest ? logits[i] : largest;
  }
  largest = simt::WarpMax(largest);
  const bool is_bad = simt::Ballot(has_nan) != 0 || largest == kInfinity || largest == -kInfinity;

  RoutedLogit mine = {-kInfinity, lane};  // of slot `lane`
  uint32_t taken = 0;                     // bit i: of logits[i]
  if (!is_bad) {
    TERRACE_NO_UNROLL
    for (uint32_t slot = 0; slot < a.per_token; ++slot) {
      RoutedLogit best = {-kInfinity, kNoExpert};
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kPerLane; ++i) {
        const RoutedLogit one = {logits[i], i * simt::kWarp + lane};
        if ((taken >> i & 1) == 0 && one.expert < a.experts && IsBefore(one, best)) best = one;
      }
      for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) {
        const RoutedLogit other = {simt::ShuffleXor(best.logit, mask), simt::ShuffleXor(best.expert, mask)};
        if (IsBefore(other, best)) best = other;
      }
      if (best.expert % simt::kWarp == lane) taken |= 1u << (best.expert / simt::kWarp);
      if (slot == lane) mine = best;
    }
  }

  const auto weigh = [&](float logit) { return simt::Exp2((logit - largest) * 1.44269504f); };
  float sum = 0;
  if (a.normalizes) {
    if (lane < a.per_token) sum = weigh(mine.logit);
  } else {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kPerLane; ++i) sum += weigh(logits[i]);
  }
  sum = simt::WarpSum(sum);
  if (lane < a.per_token) {
    const uint64_t to = uint64_t{token} * a.per_token + lane;
    a.chosen[to] = mine.expert;
    a.weights[to] = is_bad ? __builtin_nanf("") : weigh(mine.logit) / sum;
  }
}

TERRACE_DEVICE uint32_t CountBits(uint32_t v) {
  v -= v >> 1 & 0x55555555;
  v = (v & 0x33333333) + (v >> 2 & 0x33333333);
  return ((v + (v >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
}
TERRACE_DEVICE uint32_t WarpSum(uint32_t v) {
  for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) v += simt::ShuffleXor(v, mask);
  return v;
}

// Grid: [experts].
TERRACE_KERNEL void TERRACE_BOUNDS(kGroupPairsThreads, 1) GroupPairsKernel(GpuRouteExpertsArgs a) {
  simt::LetNextStart();
  constexpr uint32_t kWarps = kGroupPairsThreads / simt::kWarp;
  TERRACE_SHARED uint32_t counts[kMostGpuExperts];
  TERRACE_SHARED uint32_t sums[3][kWarps], votes[2][kWarps];
  const uint32_t expert = blockIdx.x, lane = simt::Lane(), warp = simt::WarpIndex();
  const uint32_t pairs = a.tokens * a.per_token;
  const GpuExpertGroups& groups = a.groups;
  for (uint32_t i = threadIdx.x; i < a.experts; i += kGroupPairsThreads) counts[i] = 0;
  simt::SyncThreads();
  simt::WaitForPrevious();
  for (uint32_t pair = threadIdx.x; pair < pairs; pair += kGroupPairsThreads) {
    simt::AtomicAdd(&counts[a.chosen[pair]], 1u);
  }
  simt::SyncThreads();

  // Of the experts before this one: pairs and chunks. And all chunks.
  uint32_t place = 0, chunk = 0, chunks = 0;
  const auto chunks_of = [&](uint32_t count) {
    return (count + groups.chunk_tokens - 1) / groups.chunk_tokens;
  };
  for (uint32_t i = threadIdx.x; i < a.experts; i += kGroupPairsThreads) {
    chunks += chunks_of(counts[i]);
    if (i < expert) {
      place += counts[i];
      chunk += chunks_of(counts[i]);
    }
  }
  place = WarpSum(place);
  chunk = WarpSum(chunk);
  chunks = WarpSum(chunks);
  if (lane == 0) {
    sums[0][warp] = place;
    sums[1][warp] = chunk;
    sums[2][warp] = chunks;
  }
  simt::SyncThreads();
  place = chunk = chunks = 0;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kWarps; ++i) {
    place += sums[0][i];
    chunk += sums[1][i];
    chunks += sums[2][i];
  }

  const uint32_t count = counts[expert];
  if (threadIdx.x == 0) {
    groups.begin[expert] = place;
    if (expert + 1 == a.experts) groups.begin[a.experts] = pairs;
  }
  for (uint32_t i = threadIdx.x; i < chunks_of(count); i += kGroupPairsThreads) {
    const uint32_t left = count - i * groups.chunk_tokens;
    groups.chunks[chunk + i] = {expert, place + i * groups.chunk_tokens,
                                left < groups.chunk_tokens ? left : groups.chunk_tokens};
  }
  if (expert + 1 == a.experts) {
    for (uint32_t i = chunks + threadIdx.x; i < groups.chunk_count; i += kGroupPairsThreads) {
      groups.chunks[i] = {0, 0, 0};
    }
  }

  uint32_t turn = 0;  // so that one barrier a round is enough
  for (uint32_t first = 0; first < pairs; first += kGroupPairsThreads, turn ^= 1) {
    const uint32_t pair = first + threadIdx.x;
    const bool is_mine = pair < pairs && a.chosen[pair] == expert;
    const uint32_t mine = simt::Ballot(is_mine);
    if (lane == 0) votes[turn][warp] = CountBits(mine);
    simt::SyncThreads();
    uint32_t to = place + CountBits(mine & ((1u << lane) - 1));
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kWarps; ++i) {
      const uint32_t of_warp = votes[turn][i];
      place += of_warp;
      if (i < warp) to += of_warp;
    }
    if (is_mine) {
      groups.pairs[to] = pair;
      groups.places[pair] = to;
    }
  }
}

// Of the host: calls launch(kernel, blocks, threads of a block) for each kernel, with at least one token.
template <typename Launch>
void LaunchRouteExperts(const GpuRouteExpertsArgs& args, const Launch& launch) {
  constexpr uint32_t kTokens = kRouteThreads / simt::kWarp;  // of a block
  const auto kernel = args.experts <= simt::kWarp       ? RouteTokensKernel<1>
                      : args.experts <= 4 * simt::kWarp ? RouteTokensKernel<4>
                                                        : RouteTokensKernel<kMostGpuExperts / simt::kWarp>;
  launch(kernel, (args.tokens + kTokens - 1) / kTokens, kRouteThreads);
  launch(GroupPairsKernel, args.experts, kGroupPairsThreads);
}

}  // namespace terrace
