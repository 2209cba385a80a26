// Plans for people. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/bench/level_result.h"
#include "tools/bench/speculation_figures.h"
#include "tools/plan/plan.h"

namespace terrace {

// A table, then the reasons for and against each.
std::string FormatPlans(std::span<const PlanCandidate> candidates, std::span<const PlannedServing> plans);

struct ServingCosts {
  uint64_t memory_bytes = 0;  // of a worker: weights and KV pool
  // That it was seen to take of the process, with all that comes on top; absent: not measured.
  std::optional<uint64_t> resident_bytes = {};
  double usd_per_million_tokens = 0;
};

// What was predicted against what was measured, each with the relative error.
std::string FormatVerification(const ServingPrediction& predicted, const ServingCosts& predicted_costs,
                               const LevelResult& measured, const ServingCosts& measured_costs);

// Below it: which limits measured figures break, in words as of BrokenFigures.
// How often a drafted token was to be accepted, and the share of all that were; "" where none was verified.
// The share is the lower one: those behind a wrong one count.
std::string FormatDrafts(double planned, const SpeculationFigures& measured);
std::string FormatMeasuredConstraints(const std::vector<std::string>& broken);

// AnswerIsNo where they break any; it says that `out`, a file or "", was written before.
Status MeasuredVerdict(const std::vector<std::string>& broken, const std::string& out);

// Where the best plan was not run: an error, reason not_verified, and no answer either way.
Status NotVerified(const std::string& text);

}  // namespace terrace
