// How fast the tokens of a tier's answers come: a mean of the seconds each takes, in which a token counts e
// times as much as one that came kTokens before it. Pure; one thread at a time.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace terrace {

// What was measured longer ago is not known any more: else a tier that was slow once, and is not asked
// because of that, would stay slow for good.
inline constexpr Duration kSpeedRemembered = std::chrono::minutes(1);

class TokenPace {
 public:
  static constexpr double kTokens = 512;

  void Add(double seconds, uint32_t tokens, MonoTime now) {  // `tokens` at least 1
    const double share = SecondsPerToken(now).has_value() ? 1 - std::exp(-(tokens / kTokens)) : 1;
    mean_ += share * (seconds / tokens - mean_);
    last_ = now;
  }
  std::optional<double> SecondsPerToken(MonoTime now) const {
    if (!last_.has_value() || now - *last_ >= kSpeedRemembered) return std::nullopt;
    return mean_;
  }

 private:
  double mean_ = 0;
  std::optional<MonoTime> last_;
};

}  // namespace terrace
