// Who holds each KV block, and which blocks can be used again: reference counts, and an index of blocks by
// the tokens they hold (the prefix cache). It knows ids and tokens only; the memory is KvPool's. Owned by the
// Scheduler; one thread.
//
// A block is free (nothing worth keeping), held (by one sequence or several), or cached (held by none, kept
// in the index until its memory is needed: least recently used first). free + held + cached == total after
// every call.
//
// A block is indexed once some of its rows were computed. Whole blocks are found by their key
// (text/block_key.h); a block that agrees with a prompt only in its first rows is found by the key before it
// and its first token, and has to be copied by whoever goes on differently.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/status.h"
#include "text/block_key.h"
#include "worker/kv/block_table.h"

namespace terrace {

// A beginning of a sequence that is in the cache already.
struct PrefixMatch {
  uint32_t tokens = 0;  // positions covered: those of `blocks`, then tail_rows
  BlockTable blocks;    // whole blocks, to be shared
  BlockId tail = -1;    // block whose first tail_rows rows fit too, to be copied
  uint32_t tail_rows = 0;
};

// From now on a whole block can be found, or no longer.
struct PrefixChange {
  uint64_t key = 0;  // ShortKey
  bool is_added = false;
};

class BlockManager {
 public:
  struct Options {
    uint32_t blocks = 0;
    uint32_t block_tokens = 16;
    bool keeps_prefixes = true;    // false: nothing is indexed
    bool records_changes = false;  // for TakeChanges, which somebody then has to call
  };

  explicit BlockManager(const Options& options);

  // The longest beginning of `tokens`, of at most `limit`, that indexed blocks hold. `keys`: those of the
  // whole blocks of `tokens`, after `root`. Takes nothing: Share what is used, before the next Allocate.
  PrefixMatch Match(const Hash128& root, std::span<const Hash128> keys, std::span<const int32_t> tokens,
                    size_t limit) const;
  // The indexed block with this key and these tokens.
  std::optional<BlockId> Find(const Hash128& key, std::span<const int32_t> tokens) const;

  // One more holder of an indexed block.
  void Share(BlockId block);
  // `count` blocks, appended to `table`; cached blocks give way. All or none: RESOURCE_EXHAUSTED with the
  // numbers.
  Status Allocate(size_t count, BlockTable& table);
  // Drops one holder of every block, the last block first (so that a prefix outlives what follows it), and
  // empties the table. Without `keeps_tail` a block that is cached then and not whole is the first to give
  // way.
  void Release(BlockTable& table, bool keeps_tail = true);
  void Release(BlockId block);

  // The first tokens.size() rows of a held block are computed and hold `tokens`, behind the block whose key
  // is `parent`; `key` is its own once it is whole. Returns the block to go on with: when another block holds
  // the same whole block already, that one is shared and `block` is released.
  BlockId Publish(BlockId block, const Hash128& parent, std::span<const int32_t> tokens,
                  const std::optional<Hash128>& key);
  // Nobody finds the blocks any more that hold nothing but rows of `tokens`, whoever computed them: what they
  // hold is wrong. `keys`: those of the whole blocks of `tokens`, after `root`.
  void ForgetAlike(const Hash128& root, std::span<const Hash128> keys, std::span<const int32_t> tokens);
  // Nor this one.
  void Forget(BlockId block);

  // What has changed since the last call, in order.
  std::vector<PrefixChange> TakeChanges() { return std::exchange(changes_, {}); }

  uint32_t holders(BlockId block) const { return At(block).holders; }
  size_t free() const { return free_.size(); }
  size_t held() const { return held_; }
  size_t cached() const { return cached_; }
  size_t total() const { return blocks_.size(); }
  size_t available() const { return free() + cached(); }  // what Allocate can give

  // Counts everything again and CHECKs it; `holders` are the tables of all who hold blocks. Slow: tests.
  void Audit(std::span<const BlockTable* const> holders) const;

 private:
  // Blocks that may agree with a prompt in part: those behind `parent` that begin with `first_token`.
  struct TailKey {
    Hash128 parent;
    int32_t first_token = 0;
    friend bool operator==(const TailKey&, const TailKey&) = default;
  };
  struct KeyHash {
    size_t operator()(const Hash128& key) const { return key.low; }
    size_t operator()(const TailKey& key) const {
      return key.parent.low ^ (static_cast<uint64_t>(key.first_token) + 1) * 0x9e3779b97f4a7c15u;
    }
  };
  struct Block {
    uint32_t holders = 0;
    uint32_t rows = 0;  // indexed ones; 0: the block is not indexed
    Hash128 parent, key;
    bool has_key = false;                              // indexed by `key`
    BlockId older = -1, newer = -1;                    // in the order of use, while cached
    BlockId previous_sibling = -1, next_sibling = -1;  // of one TailKey, newest first
  };

  Block& At(BlockId block);
  const Block& At(BlockId block) const;
  std::span<const int32_t> TokensOf(BlockId block) const;
  TailKey TailKeyOf(BlockId block) const { return {At(block).parent, TokensOf(block)[0]}; }
  void Release(BlockId block, bool as_oldest);
  void MakeNewest(BlockId block);
  void MakeOldest(BlockId block);
  void LeaveOrder(BlockId block);
  void Evict();

  void Record(const Hash128& key, bool is_added);

  const uint32_t block_tokens_;
  const bool keeps_prefixes_, records_changes_;
  std::vector<Block> blocks_;    // by id
  std::vector<int32_t> tokens_;  // [blocks, block_tokens]: what the indexed rows hold
  std::vector<BlockId> free_;    // last in, first out: a warm block is reused first
  size_t held_ = 0, cached_ = 0;
  BlockId oldest_ = -1, newest_ = -1;  // cached blocks by use
  std::unordered_map<Hash128, BlockId, KeyHash> whole_;
  std::unordered_map<TailKey, BlockId, KeyHash> tails_;  // the newest of each
  std::vector<PrefixChange> changes_;
};

}  // namespace terrace
