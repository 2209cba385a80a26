#include "worker/kv/prefix_journal.h"

namespace terrace {

void PrefixJournal::Append(std::span<const PrefixChange> changes) {
  if (changes.empty()) return;
  std::lock_guard lock(mutex_);
  for (const PrefixChange& change : changes) {
    const bool is_news = change.is_added ? held_.insert(change.key).second : held_.erase(change.key) > 0;
    if (!is_news) continue;
    digest_ ^= change.key;
    recent_.push_back(change);
    ++end_;
    if (recent_.size() > history_) recent_.pop_front();
  }
}

PrefixJournal::Delta PrefixJournal::Since(std::optional<uint64_t> position) const {
  std::lock_guard lock(mutex_);
  Delta delta{.position = end_, .digest = digest_};
  const uint64_t begin = end_ - recent_.size();
  if (!position.has_value() || *position < begin || *position > end_) {
    delta.is_snapshot = true;
    delta.added.assign(held_.begin(), held_.end());
    return delta;
  }
  // The last word on each key counts.
  absl::flat_hash_set<uint64_t> seen;
  for (size_t i = recent_.size(); i > *position - begin; --i) {
    const PrefixChange& change = recent_[i - 1];
    if (seen.insert(change.key).second) (change.is_added ? delta.added : delta.removed).push_back(change.key);
  }
  return delta;
}

}  // namespace terrace
