// `terrace demo`: starts the demo cluster, asks it six prompts, and shows what each answer took. ./quickstart
// runs it.
#pragma once

#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"

namespace terrace {

struct DemoOptions {
  std::string file;     // "": deploy/demo/cluster.yaml
  std::string bin_dir;  // "": beside this program
  bool once = false;    // stop after the prompts
};

Status RunDemo(const DemoOptions& options, const CommandContext& context);

}  // namespace terrace
