// The results of a benchmark for programs. docs/how-to/benchmark.md says what each number means.
#pragma once

#include <vector>

#include "base/json.h"
#include "tools/bench/bench_settings.h"
#include "tools/bench/bench_target.h"
#include "tools/bench/level_result.h"

namespace terrace {

// The percentiles that reports have, in order.
inline constexpr double kReportedPercentiles[] = {50, 90, 95, 99};

// A level at which this client sent later than so, at the 99th percentile, measured the client too.
inline constexpr double kSendLagWorthSaying = 0.01;  // seconds

// Output throughput of `level` relative to `first`; 0 where there is none to compare with.
double OutputRatio(const LevelResult& level, const LevelResult& first);

// "concurrency 4", "2.5 requests/s".
std::string DescribeShape(const LoadShape& shape);

Json BenchReportToJson(const BenchSettings& settings, const TargetDescription& target,
                       const std::vector<LevelResult>& levels);

}  // namespace terrace
