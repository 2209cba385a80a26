#include <algorithm>

#include "worker/sample/sampler.h"

namespace terrace {

void TokenCounts::AddPrompt(std::span<const int32_t> tokens) {
  entries_.reserve(entries_.size() + tokens.size());
  for (const int32_t token : tokens) entries_.push_back({.token = token});
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.token < b.token; });
  std::vector<Entry> merged;
  for (const Entry& entry : entries_) {
    if (merged.empty() || merged.back().token != entry.token) {
      merged.push_back(entry);
    } else {
      merged.back().generated += entry.generated;
    }
  }
  entries_ = std::move(merged);
}

void TokenCounts::AddGenerated(int32_t token) {
  auto at = std::lower_bound(entries_.begin(), entries_.end(), token,
                             [](const Entry& entry, int32_t value) { return entry.token < value; });
  if (at == entries_.end() || at->token != token) at = entries_.insert(at, {.token = token});
  ++at->generated;
}

}  // namespace terrace
