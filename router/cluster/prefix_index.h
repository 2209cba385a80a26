// Which replicas of one tier hold which KV blocks, by the ShortKey of the blocks' keys (text/block_key.h), as
// the workers' Watch streams tell it. One thread changes it (the cluster's); Match may be called from any,
// and waits for a change of a few keys, or a pass over one of the shards, at most.
//
// Memory is the point: a cluster caches millions of blocks. A key takes 12 bytes (and one of the hash table,
// at a load of 7/16 to 7/8): its own eight, and the replica that holds it or, of several, where their set is.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <shared_mutex>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace terrace {

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

  PrefixIndex() : shards_(kShards) {}

  Slot Add();  // holding nothing
  // Several replicas at once cost little more than one: a pass over the whole index.
  void Remove(std::span<const Slot> slots);
  // False when the digest disagrees: nothing is known of the replica then, as after Clear.
  bool Apply(Slot slot, const PrefixDelta& delta);
  void Clear(std::span<const Slot> slots);
  void Clear(Slot slot) { Clear({&slot, 1}); }

  // matched[slot] = how many of `keys`, from the first one on, the replica holds. `matched` gets as many
  // elements as there are slots.
  void Match(std::span<const uint64_t> keys, std::vector<uint32_t>& matched) const;

  size_t keys_of(Slot slot) const;  // how many the replica holds

 private:
  static constexpr size_t kShards = 256;  // of the table: what Clear holds the lock for is one of them
  // Of a key: the only holder's slot, or kMany + the index of its Holders.
  using Value = uint32_t;
  static constexpr Value kMany = Value{1} << 31;

  // Two or more slots.
  struct Holders {
    static constexpr uint32_t kFew = 8;
    std::array<uint16_t, kFew> few = {};         // the first `count`, any order
    uint32_t count = 0, words = 0;               // of `bits`
    std::unique_ptr<uint64_t[]> bits = nullptr;  // once there were more than kFew: a bit for each slot
  };
  struct Key {  // of 4-byte alignment, so that an entry takes 12 bytes
    explicit Key(uint64_t key) : low(static_cast<uint32_t>(key)), high(static_cast<uint32_t>(key >> 32)) {}
    uint32_t low, high;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const { return uint64_t{key.high} << 32 | key.low; }
  };
  using Shard = absl::flat_hash_map<Key, Value, KeyHash>;
  struct Replica {
    bool is_used = false;
    uint64_t digest = 0;
    size_t keys = 0;
  };

  static size_t ShardOf(uint64_t key) { return key >> 56; }
  void Insert(Slot slot, uint64_t key);
  void Erase(Slot slot, uint64_t key);
  bool EraseFrom(Value& value, Slot slot);  // true when nobody is left; counts nothing
  void AddTo(Value& value, Slot slot);
  bool Holds(Value value, Slot slot) const;

  mutable std::shared_mutex mutex_;
  std::vector<Shard> shards_;          // GUARDED_BY(mutex_), and so is all below
  std::deque<Holders> many_;           // by index
  std::vector<uint32_t> unused_many_;  // indices
  std::vector<Replica> replicas_;      // by slot
};

}  // namespace terrace
