// The main of a program of commands: what main.cc and distill_main.cc share.
#pragma once

#include <functional>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/command_line.h"

namespace terrace {

// Parses the command line, runs its command, says its error on stderr; the exit code. Called once, first
// thing.
int CommandMain(int argc, char** argv,
                const std::function<Status(const CommandOptions&, const CommandContext&)>& run);

}  // namespace terrace
