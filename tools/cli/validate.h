// `terrace validate`: whether the binaries would start with a configuration. They are asked themselves, so
// the verdict is theirs.
#pragma once

#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"

namespace terrace {

struct ValidateOptions {
  std::string file;
  std::string running;  // of the router that is to change to it; "": none is
  std::string kind;     // router, worker or cluster; "": what the file looks like
  std::string bin_dir;  // "": beside this program
};

// NOT_FOUND without a file, UNAVAILABLE when it cannot be read; INVALID_ARGUMENT for `running` beside a
// worker's; FAILED_PRECONDITION when a process would not start; AnswerIsNo, as of `terrace-router
// --validate`, when all would but manifests keep the model of a cluster's worker, or any model, out of a
// tier. The message says which; why is on `out`, one line each.
Status RunValidate(const ValidateOptions& options, const CommandContext& context);

}  // namespace terrace
