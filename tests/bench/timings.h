// Percentiles of measured times, printed as rows of a table. Times are those that the calling thread ran, so
// that what else the machine does is not measured. One thread.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace terrace {

// What the calling thread has run so far.
inline Duration ThreadTime() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + Duration(time.tv_nsec);
}

class Timings {
 public:
  void Add(Duration took) { sorted_ = false, seconds_.push_back(Seconds(took)); }
  size_t size() const { return seconds_.size(); }
  double At(double fraction) {
    if (!std::exchange(sorted_, true)) std::ranges::sort(seconds_);
    return seconds_[static_cast<size_t>(fraction * static_cast<double>(seconds_.size() - 1))];
  }
  static void PrintHeader() {
    std::printf("%-44s %9s %10s %10s %10s\n", "microseconds", "count", "median", "p99", "most");
  }
  void Print(const char* name) {
    if (seconds_.empty()) return;
    std::printf("%-44s %9zu %10.2f %10.2f %10.2f\n", name, size(), At(0.5) * 1e6, At(0.99) * 1e6,
                At(1) * 1e6);
    std::fflush(stdout);
  }

 private:
  std::vector<double> seconds_;
  bool sorted_ = false;
};

}  // namespace terrace
