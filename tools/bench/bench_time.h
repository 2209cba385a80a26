// Time as a load run sees it: the machine's, or a simulation's. Now and Wake are thread-safe; one thread
// waits.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>

#include "base/clock.h"

namespace terrace {

class BenchTime : public Clock {
 public:
  // Returns at `deadline`, or before it when Wake was called since the last return.
  virtual void WaitUntil(MonoTime deadline) = 0;
  virtual void Wake() = 0;
};

class RealBenchTime : public BenchTime {
 public:
  MonoTime Now() const override { return RealClock().Now(); }
  void WaitUntil(MonoTime deadline) override;
  void Wake() override;

 private:
  std::mutex mutex_;
  std::condition_variable woken_changed_;
  bool is_woken_ = false;  // GUARDED_BY(mutex_)
};

}  // namespace terrace
