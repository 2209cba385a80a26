// A tenant's limits as OpenAI's headers: "x-ratelimit-limit-requests: 600", "x-ratelimit-remaining-requests:
// 599", "x-ratelimit-reset-requests: 100ms" and the same of tokens. Pure.
#pragma once

#include <string>

#include "base/http_server.h"
#include "router/request/tenant.h"

namespace terrace {

// Those of the limits that there are.
void AddRateLimits(const RateLimits& limits, HttpHeaders& headers);

// "0s", "20ms", "1.5s", "6m0s", "1h0m0s": whole milliseconds, rounded up.
std::string DurationText(double seconds);

}  // namespace terrace
