// Who holds a KV block, of the replicas of one tier: as a number of 32 bits, and the sets behind it. Each set
// is stored once, as most blocks that several replicas hold have the same holders. One thread changes them.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace terrace {

using ReplicaSlot = uint32_t;  // a replica's place in the index

// kNobody, Only(slot), or kMany + the index of a set.
using Holders = uint32_t;
inline constexpr Holders kNobody = 0, kMany = Holders{1} << 31;
constexpr Holders Only(ReplicaSlot slot) { return 1 + slot; }

// Sets of slots as bits, in words.
inline size_t WordsFor(size_t slots) { return (slots + 63) / 64; }
inline uint64_t Bit(ReplicaSlot slot) { return uint64_t{1} << (slot % 64); }

// each(slot) for the bits of a word.
template <typename Each>
void ForEachBit(size_t word, uint64_t bits, const Each& each) {
  for (; bits != 0; bits &= bits - 1) {
    each(static_cast<ReplicaSlot>(64 * word + static_cast<size_t>(std::countr_zero(bits))));
  }
}

class HolderSets {
 public:
  bool Has(Holders holders, ReplicaSlot slot) const {
    if (holders < kMany) return holders == Only(slot);
    const Members& set = At(holders);
    if (set.bits == nullptr) return std::ranges::find(set.first(), slot) != set.first().end();
    return slot / 64 < set.words && (set.bits[slot / 64] & Bit(slot)) != 0;
  }

  // A bit for each of them in `out`, and no other; it has one for every slot.
  void CopyBits(Holders holders, std::span<uint64_t> out) const;

  // each(slot) for those that have a bit in `among`.
  template <typename Each>
  void ForEach(Holders holders, std::span<const uint64_t> among, const Each& each) const {
    const auto look_at = [&](ReplicaSlot slot) {
      if (slot / 64 < among.size() && (among[slot / 64] & Bit(slot)) != 0) each(slot);
    };
    if (holders == kNobody) return;
    if (holders < kMany) return look_at(holders - Only(0));
    const Members& set = At(holders);
    for (const uint16_t slot : set.first()) look_at(slot);
    if (set.bits == nullptr) return;
    for (size_t word = 0; word < set.words && word < among.size(); ++word) {
      ForEachBit(word, set.bits[word] & among[word], each);
    }
  }

  // What one key that had `holders` has from now on: these and `slot`, or without it where it is one of them.
  Holders Flip(Holders holders, ReplicaSlot slot);
  // The same, without those that have a bit in `slots`.
  Holders Without(Holders holders, std::span<const uint64_t> slots);

 private:
  static constexpr size_t kFew = 8;
  struct Members {
    std::array<uint16_t, kFew> few = {};         // the first `count`, rising; the others 0
    uint16_t count = 0;                          // 0: there are more than kFew, in `bits`
    uint16_t words = 0;                          // that a bit for each takes: the last word is not 0
    uint32_t keys = 0;                           // that have this set
    uint64_t hash = 0;                           // of the bits
    std::unique_ptr<uint64_t[]> bits = nullptr;  // [words]
    std::span<const uint16_t> first() const { return std::span(few).first(count); }
  };
  struct Step {
    Holders before = kNobody;
    ReplicaSlot slot = 0;
    Holders after = kNobody;
  };

  const Members& At(Holders holders) const { return sets_[holders - kMany]; }
  Members& At(Holders holders) { return sets_[holders - kMany]; }
  size_t WordsOf(Holders holders) const {
    if (holders == kNobody) return 0;
    if (holders < kMany) return (holders - Only(0)) / 64 + 1;
    return At(holders).words;
  }

  Holders FindOrAdd();
  Holders Replace(Holders before, Holders after);
  void Drop(Holders holders);

  std::deque<Members> sets_;                        // by index
  std::vector<uint32_t> unused_;                    // indices
  absl::flat_hash_map<uint64_t, Holders> by_hash_;  // those in use
  Step last_;                                       // of Flip: the next key of a chain mostly takes it too
  std::vector<uint64_t> bits_;                      // that Flip and Without work on
};

}  // namespace terrace
