#include "text/bpe_merger.h"

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

bool BpeMerger::Add(TokenId left, TokenId right, TokenId merged) {
  const auto rank = static_cast<uint32_t>(pairs_.size());
  if (!merges_.try_emplace(PairKey(left, right), Merge{rank, merged}).second) return false;
  pairs_.emplace_back(left, right);
  return true;
}

const BpeMerger::Merge* BpeMerger::Find(TokenId left, TokenId right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeMerger::Apply(const std::vector<TokenId>& symbols, std::vector<TokenId>& out) const {
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
