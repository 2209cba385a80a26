// `terrace quantize`: a smaller model of a model.
#pragma once

#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/rewrite_command.h"
#include "tools/optimize/quantize.h"

namespace terrace {

struct QuantizeOptions : RewriteOptions {
  std::string to;      // a name of kQuantizeTargets
  std::string method;  // of kQuantizeMethods; empty: gptq, and rtn for fp8
  bool act_order = false;
  bool imatrix = false;  // levels are searched for by what goes into the linears
  QuantizeBudget budget;
};

// Tells each layer as it is done, and what came of all.
Status RunQuantize(const QuantizeOptions& options, const CommandContext& context);

}  // namespace terrace
