// What `terrace bench` is asked to do. Values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/status.h"
#include "tools/bench/arrivals.h"
#include "tools/bench/workload.h"

namespace terrace {

struct ClosedLoop {
  uint32_t concurrency = 1;  // requests at a time; each answer is followed by the next request
};

struct OpenLoop {
  double rate = 1;  // requests per second, whether answers come or not
  ArrivalKind arrivals = ArrivalKind::kPoisson;
  uint32_t max_in_flight = 1024;  // a request beyond is dropped, and counted
};

using LoadShape = std::variant<ClosedLoop, OpenLoop>;

struct BenchSettings {
  std::vector<LoadShape> levels = {ClosedLoop{}};  // one after the other
  // Of each level; at least one is set, and the first that is reached ends the level.
  std::optional<uint64_t> requests;
  std::optional<double> duration_seconds;
  uint64_t warmup_requests = 0;  // of each level, before it
  WorkloadSettings workload;
  float temperature = 0;
  int32_t priority = 0;
  // Of all requests. A new one for each run keeps what a server cached in an earlier run with this seed out.
  std::string cache_salt = {};
  std::optional<double> deadline_seconds = {};  // of each request, from when it was meant to be sent
};

// INVALID_ARGUMENT, naming the flag, for settings that make no sense.
Status Validate(const BenchSettings& settings);

// "30s", "1.5m", "2h", "500ms", "20us", "20µs", "10": seconds above 0.
StatusOr<double> ParseSeconds(std::string_view text);

}  // namespace terrace
