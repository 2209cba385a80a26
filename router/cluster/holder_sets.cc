#include "router/cluster/holder_sets.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/hash.h"

namespace terrace {

void HolderSets::CopyBits(Holders holders, std::span<uint64_t> out) const {
  std::ranges::fill(out, uint64_t{0});
  const auto add = [&](ReplicaSlot slot) { out[slot / 64] |= Bit(slot); };
  if (holders == kNobody) return;
  if (holders < kMany) return add(holders - Only(0));
  const Members& set = At(holders);
  if (set.bits != nullptr) std::copy_n(set.bits.get(), set.words, out.begin());
  for (const uint16_t slot : set.first()) add(slot);
}

Holders HolderSets::Flip(Holders holders, ReplicaSlot slot) {
  if (holders == kNobody) return Only(slot);
  if (holders == Only(slot)) return kNobody;
  if (last_.before != holders || last_.slot != slot) {
    bits_.resize(std::max<size_t>(WordsOf(holders), slot / 64 + 1));
    CopyBits(holders, bits_);
    bits_[slot / 64] ^= Bit(slot);
    last_ = {.before = holders, .slot = slot, .after = FindOrAdd()};
  }
  return Replace(holders, last_.after);
}

Holders HolderSets::Without(Holders holders, std::span<const uint64_t> slots) {
  bits_.resize(WordsOf(holders));
  CopyBits(holders, bits_);
  for (size_t word = 0; word < bits_.size() && word < slots.size(); ++word) bits_[word] &= ~slots[word];
  return Replace(holders, FindOrAdd());
}

// Those in `bits_`; a new set has no keys yet.
Holders HolderSets::FindOrAdd() {
  while (!bits_.empty() && bits_.back() == 0) bits_.pop_back();
  Members set{.words = static_cast<uint16_t>(bits_.size())};
  size_t count = 0;  // or more than kFew
  for (size_t word = 0; word < bits_.size() && count <= kFew; ++word) {
    ForEachBit(word, bits_[word], [&](ReplicaSlot slot) {
      if (count < kFew) set.few[count] = static_cast<uint16_t>(slot);
      ++count;
    });
  }
  if (count == 0) return kNobody;
  if (count == 1) return Only(set.few[0]);
  const bool is_many = count > kFew;
  if (is_many) {
    set.few = {};
  } else {
    set.count = static_cast<uint16_t>(count);
  }
  set.hash = HashBytes({reinterpret_cast<const char*>(bits_.data()), bits_.size() * sizeof(uint64_t)}).low;
  const auto [entry, is_new] = by_hash_.try_emplace(set.hash, kNobody);
  if (!is_new) {
    const Members& other = At(entry->second);
    const bool is_equal = other.words == set.words && other.count == set.count && other.few == set.few &&
                          (!is_many || std::equal(bits_.begin(), bits_.end(), other.bits.get()));
    if (is_equal) return entry->second;
  }
  if (is_many) {
    set.bits = std::make_unique<uint64_t[]>(bits_.size());
    std::ranges::copy(bits_, set.bits.get());
  }
  if (unused_.empty()) {
    unused_.push_back(static_cast<uint32_t>(sets_.size()));
    sets_.emplace_back();
  }
  const Holders holders = kMany + unused_.back();
  unused_.pop_back();
  At(holders) = std::move(set);
  if (is_new) entry->second = holders;  // else another set has this hash: this one is not found again
  return holders;
}

Holders HolderSets::Replace(Holders before, Holders after) {
  if (after >= kMany) ++At(after).keys;
  if (before >= kMany && --At(before).keys == 0) Drop(before);
  return after;
}

void HolderSets::Drop(Holders holders) {
  const auto found = by_hash_.find(At(holders).hash);
  if (found != by_hash_.end() && found->second == holders) by_hash_.erase(found);
  At(holders) = Members();
  unused_.push_back(holders - kMany);
  if (last_.before == holders || last_.after == holders) last_ = Step();
}

}  // namespace terrace
