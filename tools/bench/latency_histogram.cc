#include "tools/bench/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/status.h"

namespace terrace {
namespace {

constexpr int kBits = 8;
constexpr uint64_t kBucketsPerOctave = uint64_t{1} << kBits;

// [0, 512) have a bucket each; above, the leading 9 bits choose it.
size_t BucketOf(uint64_t value) {
  const int shift = std::max(0, static_cast<int>(std::bit_width(value)) - (kBits + 1));
  return static_cast<size_t>(shift) * kBucketsPerOctave + (value >> shift);
}

// The greatest value in a bucket.
uint64_t EndOf(size_t bucket) {
  if (bucket < 2 * kBucketsPerOctave) return bucket;
  const uint64_t shift = bucket / kBucketsPerOctave - 1;
  return ((bucket - shift * kBucketsPerOctave + 1) << shift) - 1;
}

}  // namespace

void LatencyHistogram::Record(Duration sample, uint64_t times) {
  const int64_t value = std::max<int64_t>(0, sample.count());
  const size_t bucket = BucketOf(static_cast<uint64_t>(value));
  if (bucket >= buckets_.size()) buckets_.resize(bucket + 1);
  buckets_[bucket] += times;
  count_ += times;
  sum_ += static_cast<double>(value) * static_cast<double>(times);
  if (times > 0) max_ = std::max(max_, value);
}

double LatencyHistogram::mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_) * 1e-9; }

double LatencyHistogram::Percentile(double percent) const {
  CHECK(percent > 0 && percent <= 100, percent);
  if (count_ == 0) return 0;
  const auto rank = static_cast<uint64_t>(std::ceil(percent / 100 * static_cast<double>(count_)));
  uint64_t seen = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    seen += buckets_[i];
    if (seen >= rank) return Seconds(Duration(std::min(EndOf(i), static_cast<uint64_t>(max_))));
  }
  return max();
}

}  // namespace terrace
