#include "router/cluster/prefix_index.h"

#include <algorithm>
#include <array>
#include <bit>
#include <deque>
#include <mutex>
#include <shared_mutex>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/hash.h"
#include "base/status.h"

namespace terrace {
namespace {

constexpr size_t kKeysPerLock = 16;   // that a change holds the lock for
constexpr size_t kLinesPerLock = 64;  // that a pass over the index holds it for
constexpr size_t kAhead = 24;         // keys looked up ahead of time: each is a miss of the cache

// Who holds a key: kNobody, Only(slot), or kMany + the index of a set.
using Holders = uint32_t;
constexpr Holders kNobody = 0, kMany = Holders{1} << 31;
constexpr Holders Only(PrefixIndex::Slot slot) { return 1 + slot; }

size_t WordsFor(size_t slots) { return (slots + 63) / 64; }
uint64_t Bit(PrefixIndex::Slot slot) { return uint64_t{1} << (slot % 64); }

// each(slot) for the bits of a word.
template <typename Each>
void ForEachBit(size_t word, uint64_t bits, const Each& each) {
  for (; bits != 0; bits &= bits - 1) {
    each(static_cast<PrefixIndex::Slot>(64 * word + static_cast<size_t>(std::countr_zero(bits))));
  }
}

// Longer than the lock is ever held, about 10 us; after that, whoever holds it may need this processor.
constexpr int kPauses = 300;

template <typename Condition>
void SpinUntil(const Condition& condition) {
  for (int i = 0; !condition(); ++i) {
    if (i >= kPauses) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

}  // namespace

void PrefixIndex::Mutex::lock() {
  phase_ ^= kPhase;
  // The readers from now on wait for this change: those that waited for the last one see another phase.
  const uint32_t before = entered_.fetch_add(kWriting | phase_, std::memory_order_acquire);
  SpinUntil([&] { return left_.load(std::memory_order_acquire) == before; });
}

void PrefixIndex::Mutex::unlock() { entered_.fetch_and(~kWriter, std::memory_order_release); }

void PrefixIndex::Mutex::lock_shared() {
  const uint32_t writer = entered_.fetch_add(kReader, std::memory_order_acquire) & kWriter;
  if (writer == 0) return;
  SpinUntil([&] { return (entered_.load(std::memory_order_acquire) & kWriter) != writer; });
}

void PrefixIndex::Mutex::unlock_shared() { left_.fetch_add(kReader, std::memory_order_release); }

// A hash table whose keys are hashes already. Most are found in the one cache line that they belong to; a
// full line passes keys on to the next.
class PrefixIndex::KeyTable {
 public:
  KeyTable() : KeyTable(1) {}

  size_t lines() const { return lines_.size(); }
  // For how many more keys: four places of five are used, so that few keys are passed on.
  size_t room() const { return (kPerLine - 1) * lines_.size() - size_; }
  // The same with a quarter more lines. In the order of their lines keys stay in order: no miss for each.
  KeyTable Grown() const {
    KeyTable grown(lines_.size() + lines_.size() / 4 + 1);
    for (const Line& line : lines_) {
      for (size_t i = 0; i < kPerLine && line.holders[i] != kNobody; ++i) {
        grown.Insert(line.keys[i], line.holders[i]);
      }
    }
    return grown;
  }

  void Prefetch(uint64_t key) const { __builtin_prefetch(&lines_[HomeOf(key)]); }

  Holders Get(uint64_t key) const {
    size_t at = HomeOf(key);
    for (size_t left = lines_.size(); left > 0; --left, at = After(at)) {
      const Line& line = lines_[at];
      Holders found = kNobody;
      for (size_t i = 0; i < kPerLine; ++i) {  // a branch for each would be guessed wrongly
        found |= line.holders[i] & (Holders{0} - Holders{line.keys[i] == key});
      }
      if (found != kNobody || line.passed_on == 0) return found;
    }
    return kNobody;
  }

  // Of a new key: there is room(). kNobody erases the key.
  void Set(uint64_t key, Holders holders) {
    size_t at = HomeOf(key);
    for (size_t left = lines_.size(); left > 0; --left, at = After(at)) {
      Line& line = lines_[at];
      for (size_t i = 0; i < kPerLine && line.holders[i] != kNobody; ++i) {
        if (line.keys[i] == key) return SetAt(at, i, holders);
      }
      if (line.passed_on == 0) break;
    }
    if (holders != kNobody) Insert(key, holders);
  }

  // Set(key, change(its holders)) for all keys of the lines [from, to).
  template <typename Change>
  void ChangeAll(size_t from, size_t to, const Change& change) {
    for (size_t at = from; at < to; ++at) {
      for (size_t i = kPerLine; i-- > 0;) {  // downwards: into an erased one's place comes a later one
        const Holders before = lines_[at].holders[i];
        if (before == kNobody) continue;
        const Holders after = change(before);
        if (after != before) SetAt(at, i, after);
      }
    }
  }

 private:
  static constexpr size_t kPerLine = 5;
  struct alignas(64) Line {
    std::array<uint64_t, kPerLine> keys = {};
    std::array<Holders, kPerLine> holders = {};  // kNobody in the last ones, which are empty
    uint32_t passed_on = 0;  // how many keys belong to it, or before it, and are behind it
  };
  static_assert(sizeof(Line) == 64);

  explicit KeyTable(size_t lines) : lines_(lines) {}

  // Bits that TableOf does not use.
  size_t HomeOf(uint64_t key) const { return uint64_t{static_cast<uint32_t>(key)} * lines_.size() >> 32; }
  size_t After(size_t line) const { return line + 1 == lines_.size() ? 0 : line + 1; }

  void Insert(uint64_t key, Holders holders) {
    CHECK(room() > 0, "no room beside ", size_, " keys");
    for (size_t at = HomeOf(key);; at = After(at)) {
      Line& line = lines_[at];
      for (size_t i = 0; i < kPerLine; ++i) {
        if (line.holders[i] != kNobody) continue;
        line.keys[i] = key;
        line.holders[i] = holders;
        ++size_;
        return;
      }
      ++line.passed_on;
    }
  }

  void SetAt(size_t at, size_t i, Holders holders) {
    Line& line = lines_[at];
    if (holders != kNobody) {
      line.holders[i] = holders;
      return;
    }
    for (size_t past = HomeOf(line.keys[i]); past != at; past = After(past)) --lines_[past].passed_on;
    size_t last = i;
    while (last + 1 < kPerLine && line.holders[last + 1] != kNobody) ++last;
    line.keys[i] = line.keys[last];
    line.holders[i] = line.holders[last];
    line.holders[last] = kNobody;
    --size_;
  }

  std::vector<Line> lines_;
  size_t size_ = 0;  // keys
};

// The sets of two or more slots that hold some key, each once.
class PrefixIndex::HolderSets {
 public:
  bool Has(Holders holders, Slot slot) const {
    if (holders < kMany) return holders == Only(slot);
    const Members& set = At(holders);
    if (set.bits == nullptr) return std::ranges::find(set.first(), slot) != set.first().end();
    return slot / 64 < set.words && (set.bits[slot / 64] & Bit(slot)) != 0;
  }

  // A bit for each of them in `out`, and no other; it has one for every slot.
  void CopyBits(Holders holders, std::span<uint64_t> out) const {
    std::ranges::fill(out, uint64_t{0});
    const auto add = [&](Slot slot) { out[slot / 64] |= Bit(slot); };
    if (holders == kNobody) return;
    if (holders < kMany) return add(holders - Only(0));
    const Members& set = At(holders);
    if (set.bits != nullptr) std::copy_n(set.bits.get(), set.words, out.begin());
    for (const uint16_t slot : set.first()) add(slot);
  }

  // each(slot) for those that have a bit in `among`.
  template <typename Each>
  void ForEach(Holders holders, std::span<const uint64_t> among, const Each& each) const {
    const auto look_at = [&](Slot slot) {
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
  Holders Flip(Holders holders, Slot slot) {
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
  // The same, without those that have a bit in `slots`.
  Holders Without(Holders holders, std::span<const uint64_t> slots) {
    bits_.resize(WordsOf(holders));
    CopyBits(holders, bits_);
    for (size_t word = 0; word < bits_.size() && word < slots.size(); ++word) bits_[word] &= ~slots[word];
    return Replace(holders, FindOrAdd());
  }

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
    Slot slot = 0;
    Holders after = kNobody;
  };

  const Members& At(Holders holders) const { return sets_[holders - kMany]; }
  Members& At(Holders holders) { return sets_[holders - kMany]; }
  size_t WordsOf(Holders holders) const {
    if (holders == kNobody) return 0;
    if (holders < kMany) return (holders - Only(0)) / 64 + 1;
    return At(holders).words;
  }

  // Those in `bits_`; a new set has no keys yet.
  Holders FindOrAdd() {
    while (!bits_.empty() && bits_.back() == 0) bits_.pop_back();
    Members set{.words = static_cast<uint16_t>(bits_.size())};
    size_t count = 0;  // or more than kFew
    for (size_t word = 0; word < bits_.size() && count <= kFew; ++word) {
      ForEachBit(word, bits_[word], [&](Slot slot) {
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

  Holders Replace(Holders before, Holders after) {
    if (after >= kMany) ++At(after).keys;
    if (before >= kMany && --At(before).keys == 0) Drop(before);
    return after;
  }

  void Drop(Holders holders) {
    const auto found = by_hash_.find(At(holders).hash);
    if (found != by_hash_.end() && found->second == holders) by_hash_.erase(found);
    At(holders) = Members();
    unused_.push_back(holders - kMany);
    if (last_.before == holders || last_.after == holders) last_ = Step();
  }

  std::deque<Members> sets_;                        // by index
  std::vector<uint32_t> unused_;                    // indices
  absl::flat_hash_map<uint64_t, Holders> by_hash_;  // those in use
  Step last_;                                       // of Flip: the next key of a chain mostly takes it too
  std::vector<uint64_t> bits_;                      // that Flip and Without work on
};

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
    KeyTable& table = tables_[TableOf(key)];
    while (table.room() < keys.size()) {
      KeyTable grown = table.Grown();
      std::lock_guard lock(mutex_);
      std::swap(table, grown);
    }
  }
}

void PrefixIndex::Set(Slot slot, uint64_t key, bool is_held) {
  KeyTable& table = tables_[TableOf(key)];
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
  for (KeyTable& table : tables_) {
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
