// What both APIs share: time limits, names and the ids of requests.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "base/hash.h"
#include "base/retry_after.h"
#include "base/rng.h"
#include "base/status.h"
#include "router/request/tenant.h"
#include "router/request/trace_context.h"

namespace terrace {

struct ApiOptions {
  double default_timeout_seconds = 600;  // of requests that set no deadline
  double max_timeout_seconds = 3600;     // longer ones are capped
  std::string default_model = {};        // shown for requests that name none
  int64_t created_unix_seconds = 0;      // of the models, as lists show it
  uint64_t seed = 0;                     // of the request ids drawn here
  // Of gRPC streams; the HTTP server has its own.
  size_t stream_buffer_bytes = size_t{256} << 10;  // unread by the client: above it the model pauses
  double slow_reader_seconds = 60;                 // a client that reads nothing for as long is cut off
  std::shared_ptr<const Authenticator> authenticator = {};    // null: nobody is asked for a key
  std::function<RateLimits(const Tenant&)> rate_limits = {};  // what replies tell of them; null: nothing
  std::function<bool()> is_ready = {};                        // for /readyz; null: always
  // Runs a tenant's task on a thread that may take its time; false when too many wait. Null: there is none.
  std::function<bool(const std::string& tenant, std::function<void()>)> run_aside = {};

  // Whoever is asked for a key is not told the addresses of workers.
  bool shows_replicas() const { return authenticator == nullptr; }
};

// The options as they are now; asked at every request. Thread-safe.
using ApiOptionsSource = std::function<std::shared_ptr<const ApiOptions>()>;
inline ApiOptionsSource FixedApiOptions(ApiOptions options) {
  return [shared = std::make_shared<const ApiOptions>(std::move(options))] { return shared; };
}

// UNAUTHENTICATED as of Authenticator.
inline StatusOr<TenantPtr> AuthenticateCaller(const ApiOptions& options, std::string_view authorization) {
  return options.authenticator == nullptr ? DefaultTenant()
                                          : options.authenticator->Authenticate(authorization);
}

// When run_aside says no.
inline Status TooManyTexts() {
  return WithRetryAfter(
      WithReason(ResourceExhausted("the cluster is overloaded: too many long texts wait to be read"),
                 "overloaded"),
      1);
}

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
  // Of a request whose caller said `traceparent` and `tracestate`.
  TraceContext NextTrace(std::string_view traceparent, std::string_view tracestate) {
    const uint64_t count = next_++;
    std::array<uint8_t, 24> random;
    for (size_t i = 0; i < random.size(); ++i) {
      random[i] = static_cast<uint8_t>(RandomBits(seed_, count, 2 + i / 8) >> (8 * (i % 8)));
    }
    return ContinueTrace(traceparent, tracestate, random);
  }

 private:
  const uint64_t seed_;
  std::atomic<uint64_t> next_ = 0;
};

}  // namespace terrace
