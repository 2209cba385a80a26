// What `terrace evaluate` and `terrace certify` do: ask one model the rows, or two, and compare.
#pragma once

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
