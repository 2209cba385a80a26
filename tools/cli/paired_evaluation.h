// What `terrace evaluate` and `terrace certify` do: ask one model the rows, or two, and compare.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/comparison.h"
#include "tools/cli/evaluate.h"
#include "tools/cli/evaluation.h"
#include "tools/cli/model_target.h"
#include "tools/cli/task_file.h"
#include "tools/quality/lookup_probe.h"

namespace terrace {

struct EvaluationRows {
  std::vector<TaskRow> rows = {};       // of the files, then of the probe
  std::vector<ProbePrompt> probe = {};  // the last of the rows
};

// Errors of LoadTaskFile; for a probe those of OpenModel and MakeLookupProbe, and INVALID_ARGUMENT when a
// model is not in this process, or a row of the files is of a task "probe".
StatusOr<EvaluationRows> LoadEvaluationRows(const EvaluateOptions& options, const std::string& argv0);

// `records` is a file of AnswerJournal, or "". Errors of OpenTarget, RunEvaluation and AnswerJournal.
StatusOr<EvaluationResult> EvaluateTarget(ModelTarget target, const std::vector<TaskRow>& rows,
                                          const EvaluateOptions& options, const std::string& records,
                                          const CommandContext& context);

// Of a file of AnswerJournal that has all answers: FAILED_PRECONDITION otherwise; errors of ReadAnswers.
StatusOr<EvaluationResult> ResultFromRecords(const std::string& path, const std::vector<TaskRow>& rows,
                                             uint32_t max_tokens);

// Two rows with the same messages get the same answer, and are not two draws: INVALID_ARGUMENT names them.
Status CheckDistinct(const std::vector<TaskRow>& scored_rows);

// A model in this process, and what its answers said it was.
struct ScoredModel {
  ModelTarget target = {};
  std::optional<ModelFacts> facts = {};
};

// The distributions of both on the rows' prompts and expected answers, on CPUs, both models at once: the
// comparison's `divergence`, or its note where they have different tokens. FAILED_PRECONDITION names a model
// whose files are not those of its facts.
Status MeasureDivergence(std::span<const TaskRow> rows, const ScoredModel& candidate,
                         const ScoredModel& baseline, const CommandContext& context,
                         ModelComparison& comparison);

struct PairedEvaluation {
  EvaluationRows rows = {};
  EvaluationResult candidate = {}, baseline = {};
  ModelComparison comparison = {};
};

// The candidate (options.target) and the baseline, one after the other; then, unless it is turned off, their
// distributions on the rows' prompts and expected answers, both models at once on CPUs. INVALID_ARGUMENT
// names a row that asks what an earlier one asks; FAILED_PRECONDITION a model whose files have changed.
StatusOr<PairedEvaluation> EvaluatePaired(const EvaluateOptions& options, const CommandContext& context);

}  // namespace terrace
