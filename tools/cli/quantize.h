// `terrace quantize`: a smaller model of a model.
#pragma once

#include <span>
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

// Of a budget by speed: whether a step of one answer is faster by `asked`, a share, as it was planned by
// bytes.
std::string FasterText(double asked, std::span<const ComparedSteps> steps);

// Tells each layer as it is done, and what came of all.
Status RunQuantize(const QuantizeOptions& options, const CommandContext& context);

}  // namespace terrace
