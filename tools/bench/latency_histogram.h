// All samples of one latency in bounded memory: counts in logarithmic buckets, 256 to each power of two of
// nanoseconds. Mean, least and greatest are exact; a percentile is the nearest-rank one, rounded up to the
// end of its bucket: never below the true value, and at most 1/256 (0.4%) above it. Used by one thread.
#pragma once

#include <cstdint>
#include <vector>

#include "base/clock.h"

namespace terrace {

class LatencyHistogram {
 public:
  void Record(Duration sample, uint64_t times = 1);  // a negative sample counts as 0

  uint64_t count() const { return count_; }
  // Seconds; 0 while there is no sample.
  double mean() const;
  double max() const { return Seconds(Duration(max_)); }
  // The least sample such that at least `percent` percent of all are not above it; `percent` in (0, 100].
  double Percentile(double percent) const;

 private:
  std::vector<uint64_t> buckets_;  // as long as the greatest sample needs: at most 15,000
  uint64_t count_ = 0;
  double sum_ = 0;  // nanoseconds
  int64_t max_ = 0;
};

}  // namespace terrace
