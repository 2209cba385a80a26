// What two evaluations of the same rows say of one another: row by row, and by their distributions. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json_fwd.h"
#include "tools/cli/evaluation.h"
#include "tools/cli/task_file.h"
#include "tools/quality/divergence.h"
#include "tools/quality/lookup_probe.h"
#include "tools/quality/paired.h"

namespace terrace {

struct ModelComparison {
  ComparisonOptions options = {};
  std::vector<PairedComparison> tasks = {};  // one family: their p-values are adjusted together
  PairedComparison all = {};                 // of all rows; no verdict rests on it, nor on the next
  // Rows of a kind, "right" being the right form: JSON where JSON is wanted, a refusal where one is, none
  // where none is. A right answer has it too, so the tasks' verdicts say the more.
  std::vector<PairedComparison> behaviours = {};
  std::optional<Divergence> divergence = {};
  std::string divergence_note = {};  // why there is none
};

// `scored_rows` and both results' outcomes are as long (CHECK). Without a divergence.
ModelComparison CompareResults(const std::vector<TaskRow>& scored_rows, const EvaluationResult& candidate,
                               const EvaluationResult& baseline, const ComparisonOptions& options);

// For people, and for programs.
std::string FormatComparison(const ModelComparison& comparison, const std::string& baseline);
Json ComparisonToJson(const ModelComparison& comparison);

// Accuracy by length and depth: of the last outcomes, which are those of `probe`.
std::string FormatProbe(const std::vector<ProbePrompt>& probe, const EvaluationResult& result);
Json ProbeToJson(const std::vector<ProbePrompt>& probe, const EvaluationResult& result);

}  // namespace terrace
