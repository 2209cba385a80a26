// A CommandContext for tests: no terminal, no colours, output kept as text.
#pragma once

#include <sstream>
#include <string>

#include "tools/cli/command_context.h"

namespace terrace {

struct TestContext {
  std::ostringstream out, err;
  ShutdownSignal shutdown;
  CommandContext context = {.argv0 = "terrace", .out = out, .err = err, .shutdown = shutdown};
};

}  // namespace terrace
