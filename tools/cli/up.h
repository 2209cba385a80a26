// `terrace up`: a local cluster that lives until Ctrl-C.
#pragma once

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/launch_command.h"

namespace terrace {

struct UpOptions {
  LaunchOptions launch;
};

// OK after a signal; INTERNAL when the router died. Nothing is left running.
Status RunUp(const UpOptions& options, const CommandContext& context);

}  // namespace terrace
