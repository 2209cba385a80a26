#include "base/clock.h"

namespace terrace {

const Clock& RealClock() {
  class SteadyClock : public Clock {
   public:
    MonoTime Now() const override { return std::chrono::steady_clock::now(); }
  };
  static const SteadyClock clock;
  return clock;
}

}  // namespace terrace
