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

#include "base/json_fwd.h"
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

// The answer to one row.
struct RowOutcome {
  std::string text = {};
  std::string tier = {};    // that answered
  double mean_logprob = 0;  // of the answer's tokens, nats
  Score score = {};         // of this row
};

struct EvaluationResult {
  std::string model;
  std::vector<RowOutcome> outcomes;                  // of the rows with a checker, in their order
  std::vector<std::pair<std::string, Score>> tasks;  // in the order of the files
  std::map<int64_t, Score> difficulties;
  std::vector<std::pair<std::string, uint64_t>> answered_by;  // tier and rows, smallest model first
  uint64_t unscored_rows = 0;                                 // checker "none": not asked
  double wall_seconds = 0;
  std::optional<SpeculationStats> engine_speculation;  // of a model in this process with a drafter
  std::optional<ModelFacts> facts;                     // of a model in this process or in one worker

  Score All() const;
  SpeculationFigures Speculation() const;
  double LatencyQuantile(
      double share) const;  // seconds that `share` of the rows did not exceed; 0 of no rows
};

// What the answers to the rows with a checker come to. They are judged anew; `outcomes` is as long as `rows`
// (CHECK).
EvaluationResult Summarize(const std::vector<TaskRow>& scored_rows, std::vector<RowOutcome> outcomes);

struct EvaluationOptions {
  std::string model;  // as the request names it
  uint32_t concurrency = 16;
  uint32_t max_tokens = 128;
  std::function<void(size_t done, size_t total)> on_progress = [](size_t, size_t) {};
  // By place among the rows with a checker: they are not asked again.
  std::map<size_t, RowOutcome> known = {};
  // Of each that is asked, in any order; its error ends the evaluation.
  std::function<Status(size_t place, const RowOutcome& outcome)> on_outcome =
      [](size_t, const RowOutcome&) -> Status { return {}; };
};

// Greedy answers to `rows`. The first request that fails ends it with that error, which names the row;
// CANCELLED on a signal.
StatusOr<EvaluationResult> RunEvaluation(Answerer& answerer, const std::vector<TaskRow>& rows,
                                         const EvaluationOptions& options, ShutdownSignal& shutdown);

// `result` for people, beside `compared` when there is one, and for programs.
std::string FormatEvaluation(const EvaluationResult& result, const EvaluationResult* compared);
Json EvaluationToJson(const EvaluationResult& result);

}  // namespace terrace
