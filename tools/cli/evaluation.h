// Asks an Answerer every row of the task files, several at a time, and scores the answers. Used by one
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/shutdown.h"
#include "base/status.h"
#include "tools/bench/speculation_figures.h"
#include "tools/cli/answerer.h"
#include "tools/cli/task_file.h"

namespace terrace {

struct Score {
  uint64_t rows = 0;
  uint64_t right = 0;
  uint64_t prompt_tokens = 0, completion_tokens = 0;               // of all attempts, as the next two
  uint64_t speculated_tokens = 0, accepted_speculated_tokens = 0;  // see v1.Usage
  double price_usd = 0;
  // parameters x (prompt + generated tokens), every tier that was asked counted: work, whatever the hardware.
  double cost = 0;
  double total_seconds = 0;  // sum of the latencies

  double accuracy() const { return rows == 0 ? 0 : static_cast<double>(right) / static_cast<double>(rows); }
  void Add(const Score& other);
};

struct EvaluationResult {
  std::string model;
  std::vector<std::pair<std::string, Score>> tasks;  // in the order of the files
  std::map<int64_t, Score> difficulties;
  std::vector<std::pair<std::string, uint64_t>> answered_by;  // tier and rows, smallest model first
  uint64_t unscored_rows = 0;                                 // checker "none": not asked
  double wall_seconds = 0;
  std::optional<SpeculationStats> engine_speculation;  // of a model in this process with a drafter

  Score All() const;
  SpeculationFigures Speculation() const;
};

struct EvaluationOptions {
  std::string model;  // as the request names it
  uint32_t concurrency = 16;
  uint32_t max_tokens = 128;
  std::function<void(size_t done, size_t total)> on_progress = [](size_t, size_t) {};
};

// Greedy answers to `rows`. The first request that fails ends it with that error, which names the row;
// CANCELLED on a signal.
StatusOr<EvaluationResult> RunEvaluation(Answerer& answerer, const std::vector<TaskRow>& rows,
                                         const EvaluationOptions& options, ShutdownSignal& shutdown);

// `result` for people, beside `compared` when there is one, and for programs.
std::string FormatEvaluation(const EvaluationResult& result, const EvaluationResult* compared);
Json EvaluationToJson(const EvaluationResult& result);

}  // namespace terrace
