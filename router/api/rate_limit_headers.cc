#include "router/api/rate_limit_headers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/status.h"

namespace terrace {
namespace {

constexpr double kMaxSeconds = 1e9;
constexpr double kRounding = 1e-6;  // milliseconds that are none, but what computing with doubles leaves

void Add(const std::optional<RateLimit>& limit, std::string_view of, HttpHeaders& headers) {
  if (!limit.has_value()) return;
  headers.emplace_back(Concat("x-ratelimit-limit-", of), std::to_string(limit->limit));
  headers.emplace_back(Concat("x-ratelimit-remaining-", of), std::to_string(limit->remaining));
  headers.emplace_back(Concat("x-ratelimit-reset-", of), DurationText(limit->reset_seconds));
}

}  // namespace

void AddRateLimits(const RateLimits& limits, HttpHeaders& headers) {
  Add(limits.requests, "requests", headers);
  Add(limits.tokens, "tokens", headers);
}

std::string DurationText(double seconds) {
  const auto all = static_cast<int64_t>(
      std::ceil(std::clamp(seconds, 0.0, kMaxSeconds) * 1000 - kRounding));  // milliseconds
  if (all <= 0) return "0s";
  if (all < 1000) return Concat(all, "ms");
  const int64_t hours = all / 3'600'000, minutes = all / 60'000 % 60;
  std::string out = hours > 0 ? Concat(hours, "h") : "";
  if (all >= 60'000) out += Concat(minutes, "m");
  out += std::to_string(all / 1000 % 60);
  if (const int64_t rest = all % 1000; rest > 0) {
    std::string digits = std::to_string(1000 + rest);  // with its leading zeros, behind the 1
    digits[0] = '.';
    digits.erase(digits.find_last_not_of('0') + 1);
    out += digits;
  }
  return out + "s";
}

}  // namespace terrace
