// What a step of decoding takes with one engine and with another, measured in turns: what else the machine
// does for a while is in the times of both. Used by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "worker/engine/open_engine.h"

namespace terrace {

struct StepComparisonOptions {
  // Both are open at once. But for what follows from the other fields: no prefix is cached.
  OpenEngineOptions before = {}, after = {};
  std::vector<uint32_t> batches = {1, 16};  // sequences that are decoded together
  uint32_t prompt_tokens = 8, answer_tokens = 24;
  // Of each batch, after one round that does not count: at least so many, for at least so long; no more begin
  // after so long, as of large models.
  uint32_t least_rounds = 5;
  double least_seconds = 0.4, most_seconds = 20;
};

struct ComparedSteps {
  uint32_t batch = 1;
  // Medians of the rounds, and the median of the rounds' own after / before.
  double before_seconds = 0, after_seconds = 0, ratio = 1;
};

// One for each batch. Errors of OpenEngine and of the sequences; CANCELLED as `before` says.
StatusOr<std::vector<ComparedSteps>> CompareSteps(const StepComparisonOptions& options);

}  // namespace terrace
