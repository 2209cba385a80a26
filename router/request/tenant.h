// Who a request is from, what that tenant may ask for, and how a caller proves to be one. Immutable, shared
// by its requests. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "base/status.h"

namespace terrace {

struct Tenant {
  std::string name = "default";
  std::set<std::string, std::less<>> models = {};  // tiers and policies by their own names; empty: all
  double requests_per_minute = 0;                  // 0: no limit, as of the next two
  double tokens_per_minute = 0;                    // of prompts and answers
  uint32_t max_in_flight = 0;                      // requests
  double weight = 1;                               // its share when requests wait
  int64_t max_priority = 100;
  std::string cache_key = {};  // the secret that keeps its cached prefixes apart; "": they are everyone's

  bool MayUse(std::string_view model) const { return models.empty() || models.contains(model); }
  // What its sequences' cached prefixes are found by, when the caller gave `callers_salt`.
  std::string CacheSalt(const std::string& callers_salt) const;
};
using TenantPtr = std::shared_ptr<const Tenant>;

// Of all requests where nobody is asked for a key.
const TenantPtr& DefaultTenant();

// How much of a limit is left, as its tenant may see it.
struct RateLimit {
  uint64_t limit = 0;  // that may come at once: a minute's worth
  uint64_t remaining = 0;
  double reset_seconds = 0;  // until all of it is there again
};
struct RateLimits {  // absent: there is no such limit
  std::optional<RateLimit> requests = {}, tokens = {};
};

class Authenticator {
 public:
  virtual ~Authenticator() = default;
  // `authorization` as HTTP's header of that name has it: "Bearer <key>"; "" when there was none.
  // UNAUTHENTICATED (invalid_api_key), which does not repeat what was given.
  virtual StatusOr<TenantPtr> Authenticate(std::string_view authorization) const = 0;
};

}  // namespace terrace
