// The results of a benchmark for people.
#pragma once

#include <string>
#include <vector>

#include "tools/bench/bench_report.h"

namespace terrace {

// What was measured, two tables and what a reader must know before trusting them.
std::string FormatBenchReport(const BenchSettings& settings, const TargetDescription& target,
                              const std::vector<LevelResult>& levels);

}  // namespace terrace
