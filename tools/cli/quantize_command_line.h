// The flags of `terrace quantize`.
#pragma once

#include "CLI/CLI.hpp"
#include "tools/cli/quantize.h"

namespace terrace {

void AddQuantize(CLI::App& app, QuantizeOptions& options);

}  // namespace terrace
