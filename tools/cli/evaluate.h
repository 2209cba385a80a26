// `terrace evaluate`: the task files against a tier, a policy or a bare model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/model_target.h"

namespace terrace {

struct EvaluateOptions {
  ModelTarget target;
  std::string compare;             // a second model of the same kind, shown beside it
  std::vector<std::string> tasks;  // files; empty: the six test files of models/eval
  uint32_t limit = 0;              // rows of each file; 0: all
  uint32_t concurrency = 16;
  uint32_t max_tokens = 128;
  bool json = false;
};

Status RunEvaluate(const EvaluateOptions& options, const CommandContext& context);

}  // namespace terrace
