// From the keys of KV blocks to who holds them. One thread changes it; others may read what is not changed
// meanwhile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "router/cluster/holder_sets.h"

namespace terrace {

// A hash table whose keys are hashes already. Most are found in the one cache line that they belong to; a
// full line passes keys on to the next.
class PrefixKeyTable {
 public:
  PrefixKeyTable() : PrefixKeyTable(1) {}

  size_t lines() const { return lines_.size(); }
  // For how many more keys: four places of five are used, so that few keys are passed on.
  size_t room() const { return (kPerLine - 1) * lines_.size() - size_; }
  // The same with a quarter more lines. In the order of their lines keys stay in order: no miss for each.
  PrefixKeyTable Grown() const {
    PrefixKeyTable grown(lines_.size() + lines_.size() / 4 + 1);
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

  explicit PrefixKeyTable(size_t lines) : lines_(lines) {}

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

}  // namespace terrace
