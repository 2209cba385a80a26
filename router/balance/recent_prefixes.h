// Where prompts have been sent of late whose beginnings nobody has cached yet: requests with a common
// beginning that arrive together are kept together, as the first of them computes it for all. Known by a few
// of each prompt's block keys, at depths that double, for kSeconds to twice that; a report of a worker's
// cache says it better by then. Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "base/clock.h"

namespace terrace {

class RecentPrefixes {
 public:
  static constexpr double kSeconds = 2;
  static constexpr size_t kMaxKeys = 1 << 16;  // of each half; older ones are forgotten early

  struct Found {
    uint32_t replica = 0;
    uint32_t blocks = 0;  // of the prompt's first ones: a power of two
  };

  // A prompt of these block keys (short ones, in order) went to `replica`.
  void Add(std::span<const uint64_t> keys, uint32_t replica, MonoTime now);
  // Where a prompt with the longest common beginning went last.
  std::optional<Found> Find(std::span<const uint64_t> keys, MonoTime now);

 private:
  using Map = absl::flat_hash_map<uint64_t, uint32_t>;  // key -> replica
  void Age(MonoTime now);

  std::mutex mutex_;
  std::array<Map, 2> maps_;  // GUARDED_BY(mutex_): of now, and of before
  MonoTime turned_ = {};     // GUARDED_BY(mutex_)
};

}  // namespace terrace
