// A Clock for tests: stands still until Advance. Thread-safe.
#pragma once

#include <atomic>

#include "base/clock.h"

namespace terrace {

class FakeClock : public Clock {
 public:
  MonoTime Now() const override { return MonoTime(Duration(nanoseconds_.load())); }
  void Advance(Duration by) { nanoseconds_ += by.count(); }

 private:
  std::atomic<Duration::rep> nanoseconds_ = 0;
};

}  // namespace terrace
