#include "router/cluster/prefix_index.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <optional>

#include "base/status.h"

namespace terrace {
namespace {

constexpr size_t kKeysPerLock = 32;  // that a change holds the lock for
constexpr size_t kAhead = 24;        // keys looked up ahead of time: each is a miss of the cache

size_t WordsFor(size_t slots) { return (slots + 63) / 64; }
uint64_t Bit(PrefixIndex::Slot slot) { return uint64_t{1} << (slot % 64); }

}  // namespace

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
  const auto each = [&](std::span<const uint64_t> keys, auto change) {
    while (!keys.empty()) {
      std::lock_guard lock(mutex_);
      const auto now = keys.first(std::min(kKeysPerLock, keys.size()));
      for (const uint64_t key : now) change(key);
      keys = keys.subspan(now.size());
    }
  };
  each(delta.removed, [&](uint64_t key) { Erase(slot, key); });
  each(delta.added, [&](uint64_t key) { Insert(slot, key); });
  {
    std::shared_lock lock(mutex_);
    if (replicas_[slot].digest == delta.digest) return true;
  }
  Clear(slot);
  return false;
}

void PrefixIndex::Clear(std::span<const Slot> slots) {
  std::vector<uint64_t> lost;  // a bit for each slot
  for (const Slot slot : slots) {
    if (slot / 64 >= lost.size()) lost.resize(slot / 64 + 1);
    lost[slot / 64] |= Bit(slot);
  }
  std::vector<Slot> gone;  // of one key's holders
  const auto erase_lost = [&](auto& entry) {
    gone.clear();
    const auto add = [&](Slot slot) {
      if (slot / 64 < lost.size() && (lost[slot / 64] & Bit(slot)) != 0) gone.push_back(slot);
    };
    if (entry.second < kMany) {
      add(entry.second);
    } else if (const Holders& holders = many_[entry.second - kMany]; holders.bits == nullptr) {
      for (const uint16_t slot : std::span(holders.few).first(holders.count)) add(slot);
    } else {
      for (size_t word = 0; word < lost.size() && word < holders.words; ++word) {
        for (uint64_t bits = holders.bits[word] & lost[word]; bits != 0; bits &= bits - 1) {
          gone.push_back(static_cast<Slot>(64 * word + static_cast<size_t>(std::countr_zero(bits))));
        }
      }
    }
    bool is_last = false;
    for (const Slot slot : gone) {
      --replicas_[slot].keys;
      is_last = EraseFrom(entry.second, slot);
    }
    return is_last;
  };
  for (Shard& shard : shards_) {
    std::lock_guard lock(mutex_);
    if (std::ranges::none_of(slots, [&](Slot slot) { return replicas_[slot].keys > 0; })) break;
    absl::erase_if(shard, erase_lost);
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

void PrefixIndex::Insert(Slot slot, uint64_t key) {
  const auto [entry, is_new] = shards_[ShardOf(key)].try_emplace(Key(key), slot);
  if (!is_new) {
    if (Holds(entry->second, slot)) return;
    AddTo(entry->second, slot);
  }
  ++replicas_[slot].keys;
  replicas_[slot].digest ^= key;
}

void PrefixIndex::Erase(Slot slot, uint64_t key) {
  Shard& shard = shards_[ShardOf(key)];
  const auto entry = shard.find(Key(key));
  if (entry == shard.end() || !Holds(entry->second, slot)) return;
  --replicas_[slot].keys;
  replicas_[slot].digest ^= key;
  if (EraseFrom(entry->second, slot)) shard.erase(entry);
}

bool PrefixIndex::Holds(Value value, Slot slot) const {
  if (value < kMany) return value == slot;
  const Holders& holders = many_[value - kMany];
  if (holders.bits != nullptr) return slot / 64 < holders.words && (holders.bits[slot / 64] & Bit(slot)) != 0;
  const auto few = std::span(holders.few).first(holders.count);
  return std::ranges::find(few, slot) != few.end();
}

void PrefixIndex::AddTo(Value& value, Slot slot) {
  if (value < kMany) {
    if (unused_many_.empty()) {
      unused_many_.push_back(static_cast<uint32_t>(many_.size()));
      many_.emplace_back();
    }
    Holders& holders = many_[unused_many_.back()];
    holders.few[0] = static_cast<uint16_t>(value);
    holders.count = 1;
    value = kMany + unused_many_.back();
    unused_many_.pop_back();
  }
  Holders& holders = many_[value - kMany];
  if (holders.bits == nullptr && holders.count < Holders::kFew) {
    holders.few[holders.count++] = static_cast<uint16_t>(slot);
    return;
  }
  const auto words = static_cast<uint32_t>(WordsFor(replicas_.size()));
  if (holders.words < words) {
    auto bits = std::make_unique<uint64_t[]>(words);
    if (holders.bits == nullptr) {
      for (const uint16_t each : holders.few) bits[each / 64] |= Bit(each);
    } else {
      std::copy_n(holders.bits.get(), holders.words, bits.get());
    }
    holders.bits = std::move(bits);
    holders.words = words;
  }
  holders.bits[slot / 64] |= Bit(slot);
  ++holders.count;
}

bool PrefixIndex::EraseFrom(Value& value, Slot slot) {
  if (value < kMany) return true;
  Holders& holders = many_[value - kMany];
  --holders.count;
  if (holders.bits != nullptr) {
    holders.bits[slot / 64] &= ~Bit(slot);
  } else {
    *std::ranges::find(std::span(holders.few).first(holders.count), slot) = holders.few[holders.count];
  }
  if (holders.count > 1) return false;
  Slot last = holders.few[0];
  for (uint32_t word = 0; word < holders.words; ++word) {
    if (holders.bits[word] != 0) last = 64 * word + static_cast<Slot>(std::countr_zero(holders.bits[word]));
  }
  unused_many_.push_back(value - kMany);
  holders = Holders();
  value = last;
  return false;
}

void PrefixIndex::Match(std::span<const uint64_t> keys, std::vector<uint32_t>& matched) const {
  std::shared_lock lock(mutex_);
  matched.assign(replicas_.size(), 0);
  const auto prefetch = [&](size_t i) {
    if (i < keys.size()) shards_[ShardOf(keys[i])].prefetch(Key(keys[i]));
  };
  const auto find = [&](size_t i) -> std::optional<Value> {
    prefetch(i + kAhead);
    const Shard& shard = shards_[ShardOf(keys[i])];
    const auto entry = shard.find(Key(keys[i]));
    return entry == shard.end() ? std::nullopt : std::optional(entry->second);
  };
  for (size_t i = 0; i < kAhead; ++i) prefetch(i);

  // Those that hold all keys so far: a bit for each, until a key has few holders.
  std::vector<uint64_t> alive(WordsFor(replicas_.size()), ~uint64_t{0});
  const auto leave = [&](size_t word, uint64_t slots, size_t count) {
    alive[word] &= ~slots;
    if (count == 0) return;
    for (; slots != 0; slots &= slots - 1) {
      const size_t slot = 64 * word + static_cast<size_t>(std::countr_zero(slots));
      if (slot < matched.size()) matched[slot] = static_cast<uint32_t>(count);
    }
  };
  size_t count = 0;
  std::optional<Value> value;
  for (; count < keys.size() && (value = find(count)).has_value(); ++count) {
    const Holders* holders = *value < kMany ? nullptr : &many_[*value - kMany];
    if (holders == nullptr || holders->bits == nullptr) break;
    uint64_t any = 0;
    for (size_t word = 0; word < alive.size(); ++word) {
      leave(word, alive[word] & ~(word < holders->words ? holders->bits[word] : 0), count);
      any |= alive[word];
    }
    if (any == 0) return;
  }
  std::vector<Slot> few;
  if (count < keys.size() && value.has_value()) {
    const auto add = [&](Slot slot) {
      if ((alive[slot / 64] & Bit(slot)) == 0) return;
      few.push_back(slot);
      alive[slot / 64] &= ~Bit(slot);
    };
    if (*value < kMany) {
      add(*value);
    } else {
      const Holders& holders = many_[*value - kMany];
      for (const uint16_t slot : std::span(holders.few).first(holders.count)) add(slot);
    }
  }
  for (size_t word = 0; word < alive.size(); ++word) leave(word, alive[word], count);
  while (!few.empty()) {
    ++count;
    value = count < keys.size() ? find(count) : std::nullopt;
    std::erase_if(few, [&](Slot slot) {
      if (value.has_value() && Holds(*value, slot)) return false;
      matched[slot] = static_cast<uint32_t>(count);
      return true;
    });
  }
}

}  // namespace terrace
