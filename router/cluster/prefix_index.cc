#include "router/cluster/prefix_index.h"

#include <algorithm>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "base/status.h"
#include "router/cluster/holder_sets.h"
#include "router/cluster/prefix_key_table.h"

namespace terrace {
namespace {

constexpr size_t kKeysPerLock = 16;   // that a change holds the lock for
constexpr size_t kLinesPerLock = 64;  // that a pass over the index holds it for
constexpr size_t kAhead = 24;         // keys looked up ahead of time: each is a miss of the cache

}  // namespace

PrefixIndex::PrefixIndex() : tables_(kTables), sets_(std::make_unique<HolderSets>()) {}
PrefixIndex::~PrefixIndex() = default;

PrefixIndex::Slot PrefixIndex::Add() {
  std::lock_guard lock(mutex_);
  const auto unused = std::ranges::find(replicas_, false, &Replica::is_used);
  const auto slot = static_cast<Slot>(unused - replicas_.begin());
  CHECK(slot < kMaxSlots, "over ", kMaxSlots, " replicas of a tier");
  if (unused == replicas_.end()) replicas_.emplace_back();
  replicas_[slot].is_used = true;
  return slot;
}

void PrefixIndex::Remove(std::span<const Slot> slots) {
  Clear(slots);
  std::lock_guard lock(mutex_);
  for (const Slot slot : slots) replicas_[slot].is_used = false;
}

bool PrefixIndex::Apply(Slot slot, const PrefixDelta& delta) {
  if (delta.is_snapshot) Clear(slot);
  const auto set_all = [&](std::span<const uint64_t> keys, bool is_held) {
    while (!keys.empty()) {
      const auto now = keys.first(std::min(kKeysPerLock, keys.size()));
      keys = keys.subspan(now.size());
      if (is_held) MakeRoom(now);
      for (const uint64_t key : now) tables_[TableOf(key)].Prefetch(key);  // before anybody waits for it
      std::lock_guard lock(mutex_);
      for (const uint64_t key : now) Set(slot, key, is_held);
    }
  };
  set_all(delta.removed, false);
  set_all(delta.added, true);
  if (replicas_[slot].digest == delta.digest) return true;
  Clear(slot);
  return false;
}

// For all of `keys`, whatever of them is here already. Nobody waits while a table is copied.
void PrefixIndex::MakeRoom(std::span<const uint64_t> keys) {
  for (const uint64_t key : keys) {
    PrefixKeyTable& table = tables_[TableOf(key)];
    while (table.room() < keys.size()) {
      PrefixKeyTable grown = table.Grown();
      std::lock_guard lock(mutex_);
      std::swap(table, grown);
    }
  }
}

void PrefixIndex::Set(Slot slot, uint64_t key, bool is_held) {
  PrefixKeyTable& table = tables_[TableOf(key)];
  const Holders before = table.Get(key);
  if (sets_->Has(before, slot) == is_held) return;
  table.Set(key, sets_->Flip(before, slot));
  Replica& replica = replicas_[slot];
  replica.keys = is_held ? replica.keys + 1 : replica.keys - 1;
  replica.digest ^= key;
}

void PrefixIndex::Clear(std::span<const Slot> slots) {
  std::vector<uint64_t> lost(WordsFor(replicas_.size()));  // a bit for each slot
  for (const Slot slot : slots) lost[slot / 64] |= Bit(slot);
  const auto without_lost = [&](Holders holders) {
    bool has_lost = false;
    sets_->ForEach(holders, lost, [&](Slot slot) {
      --replicas_[slot].keys;
      has_lost = true;
    });
    return has_lost ? sets_->Without(holders, lost) : holders;
  };
  for (PrefixKeyTable& table : tables_) {
    if (std::ranges::none_of(slots, [&](Slot slot) { return replicas_[slot].keys > 0; })) break;
    for (size_t line = 0; line < table.lines(); line += kLinesPerLock) {
      std::lock_guard lock(mutex_);
      table.ChangeAll(line, std::min(line + kLinesPerLock, table.lines()), without_lost);
    }
  }
  std::lock_guard lock(mutex_);
  for (const Slot slot : slots) {
    CHECK(replicas_[slot].keys == 0, replicas_[slot].keys, " keys are left of replica ", slot);
    replicas_[slot].digest = 0;
  }
}

size_t PrefixIndex::keys_of(Slot slot) const {
  std::shared_lock lock(mutex_);
  return replicas_[slot].keys;
}

void PrefixIndex::Match(std::span<const uint64_t> keys, std::vector<uint32_t>& matched, uint32_t unit) const {
  std::shared_lock lock(mutex_);
  matched.assign(replicas_.size(), 0);
  const auto prefetch = [&](size_t i) {
    if (i < keys.size()) tables_[TableOf(keys[i])].Prefetch(keys[i]);
  };
  for (size_t i = 0; i < kAhead; ++i) prefetch(i);

  // Those that hold all keys so far: a bit for each. Before the first key, also of slots that there are not.
  std::vector<uint64_t> alive(WordsFor(replicas_.size()), ~uint64_t{0}), holding(alive.size());
  size_t count = 0;
  const auto leave = [&](size_t word, uint64_t slots) {
    if (count == 0) return;
    const uint32_t have = static_cast<uint32_t>(count) * unit;
    if (slots == ~uint64_t{0}) {
      std::fill_n(matched.begin() + static_cast<ptrdiff_t>(64 * word), 64, have);
    } else {
      ForEachBit(word, slots, [&](Slot slot) { matched[slot] = have; });
    }
  };
  Holders holders = kNobody;
  for (; count < keys.size(); ++count) {
    prefetch(count + kAhead);
    const Holders here = tables_[TableOf(keys[count])].Get(keys[count]);
    if (here == kNobody) break;
    if (here == holders) continue;  // nobody leaves: mostly so
    holders = here;
    sets_->CopyBits(holders, holding);
    uint64_t any = 0;
    for (size_t word = 0; word < alive.size(); ++word) {
      leave(word, alive[word] & ~holding[word]);
      alive[word] &= holding[word];
      any |= alive[word];
    }
    if (any == 0) return;
  }
  for (size_t word = 0; word < alive.size(); ++word) leave(word, alive[word]);
}

}  // namespace terrace
