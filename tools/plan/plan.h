// Which way to serve a model keeps to what is asked of it, and which of those costs least: predicted from
// what steps take, with the reasons for and against each. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/plan/constraints.h"
#include "tools/plan/serving_simulation.h"
#include "tools/plan/step_cost.h"
#include "tools/report/technique_row.h"

namespace terrace {

// What drafts, and how often it is right.
struct PlanDrafter {
  double acceptance = 0;
  const StepCost* cost = nullptr;  // of the draft model's steps, borrowed; null: drafting takes no time
  uint64_t weight_bytes = 0, kv_bytes_per_token = 0;
};

// One way to run the workers of a tier. With several ranks bytes are those of the rank that has the most.
struct PlanTier {
  const StepCost* cost = nullptr;  // borrowed, of the engine without drafts
  uint64_t weight_bytes = 0, kv_bytes_per_token = 0;
  uint32_t context_length = 0, max_step_tokens = 256;
  std::optional<PlanDrafter> drafter = {};
  double kept = 1;     // as of ServingTier
  uint32_t ranks = 1;  // processes of one machine that are a worker together
};

// One way to serve: a tier, or several as a cascade.
struct PlanCandidate {
  std::string name = {};
  std::vector<PlanTier> tiers = {};            // one at least
  std::optional<EstimatedRate> accuracy = {};  // absent: it was not measured
  // From the distributions of the baseline that it was measured against; absent likewise.
  std::optional<DistributionShift> shift = {};
  // What is known before anything is simulated.
  std::vector<std::string> reasons_against = {};
};

struct PlanSettings {
  PlanConstraints constraints = {};
  Traffic traffic = {};
  double usd_per_hour = 0;  // of a machine, which runs one worker
  uint32_t max_sequences = 16, block_tokens = 16;
  uint32_t max_machines = 16;
  std::function<bool()> is_cancelled = nullptr;  // asked while it simulates
};

struct PlannedServing {
  size_t candidate = 0;
  std::vector<ServingTier> tiers = {};  // with their workers, and the lengths of drafts that were best
  // [tiers] of each worker, or each of its ranks: weights and KV pool, drafter's included.
  std::vector<uint64_t> memory_bytes = {};
  // [tiers] Of the longest requests, whose keys and values a worker's KV pool holds at once; at most
  // max_sequences, and fewer where the memory has no more.
  std::vector<uint32_t> fitting_sequences = {};
  bool is_memory_short = false;          // these are fewer than would be in a batch otherwise
  ServingPrediction prediction = {};     // of all workers
  double usd_per_million_tokens = 0;     // of prompts and answers that were given
  std::vector<std::string> broken = {};  // constraints that are not kept, in words; none: it can be chosen
  std::vector<std::string> reasons_for = {}, reasons_against = {};  // beside the first candidate

  bool keeps_all() const { return broken.empty(); }
  bool can_run() const { return prediction.seconds > 0; }
  uint32_t machines() const;
  uint64_t most_memory() const;  // of a worker, or of one of its ranks
};

// US dollars of a million tokens that a tier reads and writes, refused answers included: what the tiers get
// for all requests together is what the plan's machines cost. The plan's own price of a single tier, and of
// one that no request is expected to reach.
double TierPrice(const PlannedServing& plan, size_t tier);

// What these figures of all workers break, in words.
std::vector<std::string> BrokenFigures(const PlanConstraints& constraints,
                                       const LatencyHistogram& first_token,
                                       const LatencyHistogram& inter_token, double output_tokens_per_second);

// The same of memory, of the worker or rank that has most, and of a price.
std::vector<std::string> BrokenCosts(const PlanConstraints& constraints, uint64_t memory_bytes,
                                     double usd_per_million_tokens);

// One for each candidate, the best first: those that keep every constraint, the cheapest first, then the
// others, of the fewest that they break first. Each has as few machines as keep latencies and throughput;
// where max_machines are not enough, those. One is added at a time, to the tier whose workers have the
// most sequences. CANCELLED when is_cancelled says so.
StatusOr<std::vector<PlannedServing>> RankPlans(std::span<const PlanCandidate> candidates,
                                                const PlanSettings& settings);

}  // namespace terrace
