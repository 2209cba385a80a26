// A rate limit: a level that refills steadily up to its capacity. What is taken may leave it below zero, as
// what a request costs is known only at its end; nothing is allowed before it is above zero again. One thread
// at a time.
#pragma once

#include <algorithm>

#include "base/clock.h"

namespace terrace {

class TokenBucket {
 public:
  // Full at first. `per_second` and `capacity` above 0.
  TokenBucket(double per_second, double capacity, MonoTime now)
      : per_second_(per_second), capacity_(capacity), level_(capacity), filled_(now) {}

  // 0 when `amount` (of which more than the capacity is never waited for) is there, else when it will be.
  double SecondsUntil(double amount, MonoTime now) {
    Refill(now);
    return std::max(0.0, (std::min(amount, capacity_) - level_) / per_second_);
  }
  double capacity() const { return capacity_; }
  double Level(MonoTime now) {
    Refill(now);
    return level_;
  }
  void Take(double amount, MonoTime now) {  // a negative one gives back
    Refill(now);
    level_ = std::min(capacity_, level_ - amount);
  }

 private:
  void Refill(MonoTime now) {
    level_ = std::min(capacity_, level_ + per_second_ * Seconds(now - filled_));
    filled_ = now;
  }

  double per_second_, capacity_, level_;
  MonoTime filled_;
};

}  // namespace terrace
