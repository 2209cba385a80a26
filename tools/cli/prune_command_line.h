// The flags of `terrace prune`.
#pragma once

#include "CLI/CLI.hpp"
#include "tools/cli/prune.h"

namespace terrace {

void AddPrune(CLI::App& app, PruneOptions& options);

}  // namespace terrace
