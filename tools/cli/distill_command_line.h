// The flags of `terrace distill`.
#pragma once

#include "CLI/CLI.hpp"
#include "tools/cli/distill.h"

namespace terrace {

void AddDistill(CLI::App& app, DistillOptions& options);

}  // namespace terrace
