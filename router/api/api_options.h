// What both APIs share: time limits, names and the ids of requests.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>

#include "base/clock.h"
#include "base/hash.h"
#include "base/rng.h"

namespace terrace {

struct ApiOptions {
  double default_timeout_seconds = 600;  // of requests that set no deadline
  double max_timeout_seconds = 3600;     // longer ones are capped
  std::string default_model;             // shown for requests that name none
  int64_t created_unix_seconds = 0;      // of the models, as lists show it
  uint64_t seed = 0;                     // of the request ids drawn here
};

// The latest moment for a request that asked for `timeout_seconds` (negative: none asked for).
inline MonoTime DeadlineOf(const ApiOptions& options, MonoTime now, double timeout_seconds) {
  const double asked = timeout_seconds < 0 ? options.default_timeout_seconds : timeout_seconds;
  const double seconds = std::min(asked, options.max_timeout_seconds);
  return now + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

// "req-" and 32 hexadecimal digits, never the same twice in one process. Thread-safe.
class RequestIds {
 public:
  explicit RequestIds(uint64_t seed) : seed_(seed) {}
  std::string Next() {
    const uint64_t count = next_++;
    return "req-" + Hash128{RandomBits(seed_, count, 0), RandomBits(seed_, count, 1)}.Hex();
  }

 private:
  const uint64_t seed_;
  std::atomic<uint64_t> next_ = 0;
};

}  // namespace terrace
