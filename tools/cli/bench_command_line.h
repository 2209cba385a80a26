// The flags of `terrace bench`.
#pragma once

#include "CLI/CLI.hpp"
#include "tools/cli/bench.h"

namespace terrace {

// Parsing fails for flags that make no sense together.
void AddBench(CLI::App& app, BenchOptions& options);

}  // namespace terrace
