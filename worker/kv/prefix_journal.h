// Which whole blocks a prefix cache holds, for readers in other threads: each gets all of them once, then
// what changed since it last asked. One thread appends; Since may be called from any.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "worker/kv/block_manager.h"

namespace terrace {

class PrefixJournal {
 public:
  struct Delta {
    uint64_t position = 0;                           // to ask from the next time
    bool is_snapshot = false;                        // `added` is all there is
    std::vector<uint64_t> added = {}, removed = {};  // no key is in both
    uint64_t digest = 0;                             // XOR of all keys held at `position`
  };

  // Who asks from further back than `history` changes gets a snapshot.
  explicit PrefixJournal(size_t history = size_t{1} << 16) : history_(history) {}

  void Append(std::span<const PrefixChange> changes);
  // Without a position: a snapshot.
  Delta Since(std::optional<uint64_t> position) const;

 private:
  const size_t history_;
  mutable std::mutex mutex_;
  absl::flat_hash_set<uint64_t> held_;  // GUARDED_BY(mutex_)
  std::deque<PrefixChange> recent_;     // GUARDED_BY(mutex_): the last ones
  uint64_t end_ = 0;                    // GUARDED_BY(mutex_): changes ever
  uint64_t digest_ = 0;                 // GUARDED_BY(mutex_)
};

}  // namespace terrace
