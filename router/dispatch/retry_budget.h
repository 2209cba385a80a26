// How many retries a tier may have: so many for each request of the last ten seconds, so that a tier that
// fails as a whole is not asked several times over, and ten in any case, so that a tier with few requests has
// them too. Answers that had begun go on without one: what was done for them would be lost. Thread-safe.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>

#include "base/clock.h"

namespace terrace {

struct RetryOptions {
  static constexpr uint32_t kMostAttempts = 64;

  uint32_t max_attempts = 3;  // of one answer at one tier, in a row that bring no token
  double ratio = 0.1;         // retries to requests
  // Of an answer that has begun, and for which there is no replica.
  Duration resume_patience = std::chrono::seconds(10);
};

class RetryBudget {
 public:
  static constexpr uint64_t kFloor = 10;  // retries in kWindowSeconds
  static constexpr int64_t kWindowSeconds = 10;

  RetryBudget(double ratio, const Clock& clock) : ratio_(ratio), clock_(clock) {}  // `clock` outlives it

  void OnRequest();  // an answer asks the tier for the first time
  bool TakeRetry();  // false when there are no more: none is counted

 private:
  struct Second {
    int64_t second = -1;  // of the clock
    uint64_t requests = 0, retries = 0;
  };
  Second& Now();

  const double ratio_;
  const Clock& clock_;
  std::mutex mutex_;
  std::array<Second, kWindowSeconds> seconds_;  // GUARDED_BY(mutex_); a ring
};

}  // namespace terrace
