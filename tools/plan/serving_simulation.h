// Latencies and throughput of tiers of workers under a traffic, from what their steps take: the scheduler's
// rules played through without a model. Pure: the same arguments give the same prediction.
//
// The rules are those of worker/engine/scheduler.h as far as they decide times: a step decodes every running
// sequence and spends the rest of max_step_tokens on prompts, the shortest rest first, then on drafts;
// sequences are admitted in the order of their arrival while there is a place and memory for all that they
// may hold. A request goes to the worker of its tier with the fewest. Left out: preemption (so memory is held
// from the start), priorities, balancing by cached prefix, and the time outside steps.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tools/bench/bench_settings.h"
#include "tools/bench/latency_histogram.h"
#include "tools/bench/length_distribution.h"
#include "tools/plan/step_cost.h"
#include "tools/plan/trace_file.h"

namespace terrace {

// What is asked: drawn, or as it was recorded.
struct Traffic {
  LengthDistribution prompt_tokens = LengthDistribution::Fixed(128);  // the shared prefix included
  LengthDistribution output_tokens = LengthDistribution::Fixed(64);
  uint32_t shared_prefix_tokens = 0;  // that a prefix cache has of each prompt, but of a worker's first
  LoadShape load = ClosedLoop{};
  uint64_t requests = 200;
  uint64_t seed = 0;
  std::vector<TracedRequest> trace = {};  // not empty: these, instead of all above but the seed

  uint64_t longest() const;  // tokens of a prompt and its answer, at most
};

// What is drafted in a worker's steps: `length` tokens of every sequence and step, each accepted with this
// probability if those before it were. Drafting itself takes `seconds` a step.
struct DraftSteps {
  double acceptance = 0;
  uint32_t length = 0;  // 0: none
  double seconds = 0;

  double TokensPerStep() const;  // of a sequence: 1 + a + ... + a^length
};

struct ServingSettings {
  uint32_t max_sequences = 16, max_step_tokens = 256;
  uint64_t kv_tokens = 0;  // that the KV pool holds
  uint32_t block_tokens = 16;
  DraftSteps drafts = {};
};

// Workers that are all alike.
struct ServingTier {
  const StepCost* cost = nullptr;  // borrowed
  ServingSettings settings = {};   // of each
  uint32_t context_length = 0;
  uint32_t workers = 1;
  // Share of its answers that are given; the others are asked of the next tier. They are held back to their
  // end, when that is known. Of the last tier 1.
  double kept = 1;
};

struct ServingPrediction {
  double seconds = 0;                             // from the first arrival to the last token
  uint64_t prompt_tokens = 0, output_tokens = 0;  // of the answers that were given
  // As terrace bench counts them; end_to_end to the last token.
  LatencyHistogram first_token = {}, inter_token = {}, end_to_end = {};
  // [tiers], of its workers: share of the time in steps, and sequences that were there, waiting or running.
  std::vector<double> busy_shares = {}, sequences = {};
  // Of an open loop: more came than could be served, and waits grow for as long as it lasts. A trace ends:
  // what it waited is among its latencies.
  bool is_overloaded = false;

  double OutputTokensPerSecond() const {
    return seconds > 0 ? static_cast<double>(output_tokens) / seconds : 0;
  }
  double TokensPerSecond() const {
    return seconds > 0 ? static_cast<double>(prompt_tokens + output_tokens) / seconds : 0;
  }
};

// `tiers`, one at least (CHECK), are asked in order. INVALID_ARGUMENT for a request that can never run: more
// tokens than a KV pool holds, or than a context; for no requests, no workers, or a step that has no room for
// each sequence. CANCELLED when is_cancelled, asked every so many steps, says so.
StatusOr<ServingPrediction> SimulateServing(std::span<const ServingTier> tiers, const Traffic& traffic,
                                            const std::function<bool()>& is_cancelled = nullptr);

}  // namespace terrace
