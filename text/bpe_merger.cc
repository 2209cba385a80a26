#include "text/bpe_merger.h"

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <queue>

namespace terrace {
namespace {

uint64_t PairKey(TokenId left, TokenId right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

// A doubly linked list over an array: joining two neighbours is O(1).
struct Symbol {
  TokenId id;  // kJoined once it became part of its left neighbour
  int32_t previous, next;
};
constexpr TokenId kJoined = -1;

struct Candidate {
  uint64_t order;  // rank, then position of the left symbol
  TokenId left, right, merged;
  friend bool operator>(const Candidate& a, const Candidate& b) { return a.order > b.order; }
};

}  // namespace

bool BpeMerger::Add(TokenId left, TokenId right, TokenId merged, uint32_t rank) {
  if (!merges_.try_emplace(PairKey(left, right), Merge{rank, merged}).second) return false;
  pairs_.emplace_back(left, right);
  return true;
}

const BpeMerger::Merge* BpeMerger::Find(TokenId left, TokenId right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

// Looks at all pairs for each merge, but takes no memory: for a word that is several times as fast.
void BpeMerger::ApplyToFew(const std::vector<TokenId>& symbols, std::vector<TokenId>& out) const {
  std::array<TokenId, kFewSymbols> ids = {};
  std::array<const Merge*, kFewSymbols> merges = {};  // [i]: of ids[i] and ids[i + 1]; null: there is none
  size_t count = symbols.size();
  std::ranges::copy(symbols, ids.begin());
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = Find(ids[i], ids[i + 1]);
  for (;;) {
    const Merge* lowest = nullptr;
    size_t at = 0;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (merges[i] == nullptr || (lowest != nullptr && lowest->rank <= merges[i]->rank)) continue;
      lowest = merges[i];
      at = i;
    }
    if (lowest == nullptr) break;
    ids[at] = lowest->merged;
    std::copy(ids.begin() + at + 2, ids.begin() + count, ids.begin() + at + 1);
    std::copy(merges.begin() + at + 1, merges.begin() + count - 1, merges.begin() + at);
    --count;
    if (at > 0) merges[at - 1] = Find(ids[at - 1], ids[at]);
    if (at + 1 < count) merges[at] = Find(ids[at], ids[at + 1]);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + count);
}

void BpeMerger::Apply(const std::vector<TokenId>& symbols, std::vector<TokenId>& out) const {
  if (symbols.size() <= kFewSymbols) return ApplyToFew(symbols, out);
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<Symbol> list(symbols.size());
  for (int32_t i = 0; i < count; ++i) list[i] = {symbols[i], i - 1, i + 1};

  std::vector<Candidate> candidates;
  const auto candidate_at = [&](int32_t position) -> std::optional<Candidate> {
    const int32_t next = list[position].next;
    if (next == count) return std::nullopt;
    const TokenId left = list[position].id, right = list[next].id;
    const Merge* merge = Find(left, right);
    if (merge == nullptr) return std::nullopt;
    return Candidate{uint64_t{merge->rank} << 32 | static_cast<uint32_t>(position), left, right,
                     merge->merged};
  };
  for (int32_t i = 0; i + 1 < count; ++i) {
    if (const auto candidate = candidate_at(i)) candidates.push_back(*candidate);
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(),
                                                                               std::move(candidates));

  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    const auto position = static_cast<int32_t>(best.order & 0xFFFFFFFF);
    Symbol& left = list[position];
    if (left.id != best.left || left.next == count || list[left.next].id != best.right)
      continue;  // out of date
    list[left.next].id = kJoined;
    left.id = best.merged;
    left.next = list[left.next].next;
    if (left.next != count) list[left.next].previous = position;
    if (left.previous >= 0) {
      if (const auto candidate = candidate_at(left.previous)) queue.push(*candidate);
    }
    if (const auto candidate = candidate_at(position)) queue.push(*candidate);
  }
  for (int32_t i = 0; i != count; i = list[i].next) out.push_back(list[i].id);
}

}  // namespace terrace
