// `terrace prune`: a model with fewer weights, heads, channels or layers of a model.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/rewrite_command.h"
#include "tools/optimize/prune.h"
#include "tools/report/step_comparison.h"

namespace terrace {

struct PruneOptions : RewriteOptions {
  double sparsity = 0;  // share of the weights that become zero
  std::string pattern;  // of kPrunePatterns; "": none
  std::string method;   // of kPruneMethods; "": the first, where weights become zero
  Cut cut;
  bool no_repair = false;
  // Of a model of which a step reads less: what a step of decoding takes on this machine, before and after.
  bool no_step_times = false;
};

// What was measured, and for how many answers at once it pays: whether steps take less by more than what two
// measurements of the same differ in.
std::string StepTimesText(std::span<const ComparedSteps> steps);

// Tells each layer as it is done, what came of all, and whether a step of a worker becomes cheaper. Times are
// told and not kept: what is written is the same every time.
Status RunPrune(const PruneOptions& options, const CommandContext& context);

}  // namespace terrace
