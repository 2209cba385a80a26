// `terrace distill`: a small model trained by what a large one says. The work is done by a program of its
// own, terrace-distill, which is linked with libtorch and need not be there.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/distill/distill_request.h"

namespace terrace {

struct DistillOptions {
  DistillRequest request = {};              // but for its calls
  uint32_t threads = 0;                     // 0: all cores this process may use
  std::vector<std::string> arguments = {};  // the whole command line, "distill" first
};

// Becomes terrace-distill with the same command line; returns only an error: UNAVAILABLE when it is not
// beside this program.
Status RunDistill(const DistillOptions& options, const CommandContext& context);

// The same with the folders to look in.
Status BecomeDistiller(const std::vector<std::string>& folders, const std::vector<std::string>& arguments);

}  // namespace terrace
