// Monotonic time behind one interface, so that policies and tests never read the machine's clock.
#pragma once

#include <algorithm>
#include <chrono>
#include <ctime>

namespace terrace {

using Duration = std::chrono::nanoseconds;
using MonoTime = std::chrono::time_point<std::chrono::steady_clock, Duration>;

// Thread-safe. Now() never goes backwards.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonoTime Now() const = 0;
};

// The machine's steady clock. Lives for the whole process.
const Clock& RealClock();

inline double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

// The wall-clock time in `wait`, or now where that is over: what gRPC's deadlines and alarms are.
inline std::chrono::system_clock::time_point WallTimeIn(Duration wait) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(std::max(wait, Duration(0)));
}

// `wait` as system calls take it; of one that is over, none.
inline timespec TimespecOf(Duration wait) {
  const Duration left = std::max(wait, Duration(0));
  const auto seconds = std::chrono::floor<std::chrono::seconds>(left);
  return {.tv_sec = seconds.count(), .tv_nsec = (left - seconds).count()};
}

}  // namespace terrace
