// How often an event is logged that anyone may cause as often as they like: lines that find no room are left
// out, and the next one says how many. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>

#include "base/clock.h"

namespace terrace {

class LogLimit {
 public:
  // At most `lines` in each `period`, which begins with the first of them.
  LogLimit(uint64_t lines, Duration period) : lines_(lines), period_(period) {}

  // How many were left out since the last line, when one more may go out `now`.
  std::optional<uint64_t> Take(MonoTime now) {
    std::lock_guard lock(mutex_);
    if (!begin_.has_value() || now - *begin_ >= period_) {
      begin_ = now;
      taken_ = 0;
    }
    if (taken_ >= lines_) {
      ++left_out_;
      return std::nullopt;
    }
    ++taken_;
    return std::exchange(left_out_, 0);
  }

 private:
  const uint64_t lines_;
  const Duration period_;
  std::mutex mutex_;
  std::optional<MonoTime> begin_;  // GUARDED_BY(mutex_), as all below
  uint64_t taken_ = 0, left_out_ = 0;
};

}  // namespace terrace
