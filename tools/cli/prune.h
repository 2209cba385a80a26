// `terrace prune`: a model with fewer weights, heads, channels or layers of a model.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/rewrite_command.h"
#include "tools/optimize/prune.h"

namespace terrace {

struct PruneOptions : RewriteOptions {
  double sparsity = 0;  // share of the weights that become zero
  std::string pattern;  // of kPrunePatterns; "": none
  std::string method;   // of kPruneMethods; "": the first, where weights become zero
  Cut cut;
  bool no_repair = false;
};

// Tells each layer as it is done, what came of all, and whether a step of a worker becomes cheaper. Times are
// told and not kept: what is written is the same every time.
Status RunPrune(const PruneOptions& options, const CommandContext& context);

}  // namespace terrace
