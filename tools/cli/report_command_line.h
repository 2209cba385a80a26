// The flags of `terrace report`, and those that name ways to run a model for other commands too.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/status.h"
#include "tools/cli/report.h"

namespace terrace {

// As the flags have them, before they are read.
struct VariantFlags {
  std::vector<std::string> techniques = {}, variants = {}, cascades = {};
};

// What techniques are made with; all borrowed.
struct TechniqueSettings {
  CalibrationOptions& calibration;
  uint64_t& mixed_bytes;
  std::string& work;
};

// --techniques, --variant, --cascade, --calibration, --samples, --mixed-fit and --work. All that is given
// outlives `command`.
std::vector<CLI::Option*> AddVariantOptions(CLI::App& command, VariantFlags& flags,
                                            const TechniqueSettings& settings);
// INVALID_ARGUMENT names the flag.
Status ReadVariants(const VariantFlags& flags, std::vector<std::string>& techniques,
                    std::vector<ReportVariant>& variants, std::vector<ReportCascade>& cascades);

// Parsing fails for flags that make no sense together.
void AddReport(CLI::App& app, ReportOptions& options);

}  // namespace terrace
