// Which replicas of one tier hold which KV blocks, by the ShortKey of the blocks' keys (text/block_key.h), as
// the workers' Watch streams tell it. One thread changes it (the cluster's); Match and keys_of may be called
// from any, and wait for a change of a few keys, or of a few cache lines of a pass, at most.
//
// Memory is the point, and misses of the cache: a cluster caches millions of blocks, and a prompt looks up a
// hundred of them, which lie anywhere. A key takes 12 bytes, five to a cache line (64% to 80% full): its own
// eight, and who holds it: a replica, or a set of several. Each set is stored once: the blocks of a beginning
// that many hold have the same holders, so a chain of them costs a look-up each and little more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "router/cluster/phase_fair_mutex.h"

namespace terrace {

class HolderSets;
class PrefixKeyTable;

// What changed in one replica's prefix cache. No key is in both lists.
struct PrefixDelta {
  bool is_snapshot = false;  // `added` is all there is
  std::vector<uint64_t> added = {}, removed = {};
  uint64_t digest = 0;  // XOR of all keys the replica holds now
};

class PrefixIndex {
 public:
  using Slot = uint32_t;  // a replica's place here; small, and used again when it is gone
  static constexpr Slot kMaxSlots = 1 << 15;

  PrefixIndex();
  ~PrefixIndex();

  Slot Add();  // holding nothing
  // Several replicas at once cost little more than one: a pass over the whole index.
  void Remove(std::span<const Slot> slots);
  // False when the digest disagrees: nothing is known of the replica then, as after Clear.
  bool Apply(Slot slot, const PrefixDelta& delta);
  void Clear(std::span<const Slot> slots);
  void Clear(Slot slot) { Clear({&slot, 1}); }

  // matched[slot] = `unit` times how many of `keys`, from the first one on, the replica holds. `matched` gets
  // as many elements as there are slots.
  void Match(std::span<const uint64_t> keys, std::vector<uint32_t>& matched, uint32_t unit = 1) const;

  size_t keys_of(Slot slot) const;  // how many the replica holds

 private:
  struct Replica {
    bool is_used = false;
    uint64_t digest = 0;
    size_t keys = 0;
  };

  static constexpr size_t kTables = 256;  // one grows at a time
  static size_t TableOf(uint64_t key) { return key >> 56; }
  void MakeRoom(std::span<const uint64_t> keys);
  void Set(Slot slot, uint64_t key, bool is_held);

  mutable PhaseFairMutex mutex_;
  // GUARDED_BY(mutex_), all of them; but the one thread that changes them reads them without it.
  std::vector<PrefixKeyTable> tables_;
  std::unique_ptr<HolderSets> sets_;
  std::vector<Replica> replicas_;  // by slot
};

}  // namespace terrace
