// The flags of `terrace plan`.
#pragma once

#include "CLI/CLI.hpp"
#include "tools/cli/plan.h"

namespace terrace {

// Parsing fails for flags that make no sense together.
void AddPlan(CLI::App& app, PlanOptions& options);

}  // namespace terrace
