#include "worker/kv/block_manager.h"

#include <algorithm>
#include <limits>

namespace terrace {
namespace {

constexpr BlockId kNone = -1;
// Siblings looked at for a partial match: newer ones are likelier to go on alike.
constexpr int kMaxSiblings = 8;

size_t CommonRows(std::span<const int32_t> a, std::span<const int32_t> b) {
  return static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

}  // namespace

BlockManager::BlockManager(const Options& options)
    : block_tokens_(options.block_tokens),
      keeps_prefixes_(options.keeps_prefixes),
      records_changes_(options.records_changes),
      blocks_(options.blocks),
      tokens_(size_t{options.blocks} * options.block_tokens) {
  CHECK(options.blocks <= static_cast<uint32_t>(std::numeric_limits<BlockId>::max()), options.blocks,
        " KV blocks");
  CHECK(options.block_tokens > 0);
  free_.reserve(options.blocks);
  for (size_t id = options.blocks; id > 0; --id)
    free_.push_back(static_cast<BlockId>(id - 1));  // 0 is handed out first
}

BlockManager::Block& BlockManager::At(BlockId block) {
  CHECK(block >= 0 && static_cast<size_t>(block) < blocks_.size(), "KV block ", block);
  return blocks_[static_cast<size_t>(block)];
}

const BlockManager::Block& BlockManager::At(BlockId block) const {
  return const_cast<BlockManager*>(this)->At(block);
}

std::span<const int32_t> BlockManager::TokensOf(BlockId block) const {
  return std::span(tokens_).subspan(static_cast<size_t>(block) * block_tokens_, At(block).rows);
}

std::optional<BlockId> BlockManager::Find(const Hash128& key, std::span<const int32_t> tokens) const {
  const auto found = whole_.find(key);
  if (found == whole_.end() || !std::ranges::equal(TokensOf(found->second), tokens)) return std::nullopt;
  return found->second;
}

PrefixMatch BlockManager::Match(const Hash128& root, std::span<const Hash128> keys,
                                std::span<const int32_t> tokens, size_t limit) const {
  PrefixMatch match;
  if (!keeps_prefixes_) return match;
  tokens = tokens.first(std::min(limit, tokens.size()));
  while (tokens.size() >= block_tokens_) {
    const auto block = Find(keys[match.blocks.size()], tokens.first(block_tokens_));
    if (!block.has_value()) break;
    match.blocks.push_back(*block);
    tokens = tokens.subspan(block_tokens_);
  }
  match.tokens = static_cast<uint32_t>(match.blocks.size()) * block_tokens_;
  if (tokens.empty()) return match;

  const Hash128& parent = match.blocks.empty() ? root : keys[match.blocks.size() - 1];
  const auto newest = tails_.find({parent, tokens[0]});
  BlockId sibling = newest == tails_.end() ? kNone : newest->second;
  for (int i = 0; i < kMaxSiblings && sibling != kNone; ++i, sibling = At(sibling).next_sibling) {
    const size_t rows = CommonRows(TokensOf(sibling), tokens);
    if (rows <= match.tail_rows) continue;
    match.tail = sibling;
    match.tail_rows = static_cast<uint32_t>(rows);
  }
  match.tokens += match.tail_rows;
  return match;
}

void BlockManager::Share(BlockId id) {
  Block& block = At(id);
  CHECK(block.holders > 0 || block.rows > 0, "KV block ", id, " is free");
  if (block.holders++ > 0) return;
  LeaveOrder(id);
  --cached_;
  ++held_;
}

Status BlockManager::Allocate(size_t count, BlockTable& table) {
  if (count > available()) {
    return ResourceExhausted("KV cache: ", count, " blocks asked for, ", available(), " of ", total(),
                             " can be had");
  }
  for (size_t i = 0; i < count; ++i) {
    if (free_.empty()) Evict();
    const BlockId id = free_.back();
    free_.pop_back();
    At(id).holders = 1;
    table.push_back(id);
  }
  held_ += count;
  return {};
}

void BlockManager::Release(BlockTable& table, bool keeps_tail) {
  for (; !table.empty(); table.pop_back())
    Release(table.back(), /*as_oldest=*/!keeps_tail && !At(table.back()).has_key);
}

void BlockManager::Release(BlockId id) { Release(id, /*as_oldest=*/false); }

void BlockManager::Release(BlockId id, bool as_oldest) {
  Block& block = At(id);
  CHECK(block.holders > 0, "KV block ", id, " is given back but not held");
  if (--block.holders > 0) return;
  --held_;
  if (block.rows > 0) {
    as_oldest ? MakeOldest(id) : MakeNewest(id);
    ++cached_;
  } else {
    free_.push_back(id);
  }
}

BlockId BlockManager::Publish(BlockId id, const Hash128& parent, std::span<const int32_t> tokens,
                              const std::optional<Hash128>& key) {
  Block& block = At(id);
  CHECK(block.holders > 0 && !tokens.empty() && tokens.size() <= block_tokens_ && !block.has_key &&
            key.has_value() == (tokens.size() == block_tokens_),
        "KV block ", id, " with ", tokens.size(), " rows");
  if (!keeps_prefixes_) return id;
  if (key.has_value()) {
    if (const auto twin = Find(*key, tokens); twin.has_value()) {
      Forget(id);
      Share(*twin);
      Release(id);
      return *twin;
    }
  }
  std::ranges::copy(tokens.subspan(block.rows), tokens_.begin() + id * static_cast<ptrdiff_t>(block_tokens_) +
                                                    static_cast<ptrdiff_t>(block.rows));
  const bool is_new = block.rows == 0;
  block.rows = static_cast<uint32_t>(tokens.size());
  if (is_new) {
    block.parent = parent;
    const auto [place, is_first] = tails_.try_emplace(TailKeyOf(id), id);
    if (!is_first) {
      block.next_sibling = place->second;
      At(place->second).previous_sibling = id;
      place->second = id;
    }
  }
  if (key.has_value() &&
      whole_.try_emplace(*key, id).second) {  // else two contents have one key: the first stays
    block.key = *key;
    block.has_key = true;
    Record(*key, /*is_added=*/true);
  }
  return id;
}

void BlockManager::Record(const Hash128& key, bool is_added) {
  if (records_changes_) changes_.push_back({ShortKey(key), is_added});
}

void BlockManager::ForgetAlike(const Hash128& root, std::span<const Hash128> keys,
                               std::span<const int32_t> tokens) {
  for (size_t i = 0; i <= keys.size() && !tokens.empty(); ++i) {
    const auto newest = tails_.find({i == 0 ? root : keys[i - 1], tokens[0]});
    for (BlockId id = newest == tails_.end() ? kNone : newest->second; id != kNone;) {
      const BlockId next = At(id).next_sibling;
      if (CommonRows(TokensOf(id), tokens) == At(id).rows) Forget(id);
      id = next;
    }
    tokens = tokens.subspan(std::min<size_t>(block_tokens_, tokens.size()));
  }
}

void BlockManager::Forget(BlockId id) {
  Block& block = At(id);
  if (block.rows == 0) return;
  const bool was_cached = block.holders == 0;
  if (was_cached) LeaveOrder(id);
  if (block.has_key) {
    whole_.erase(block.key);
    Record(block.key, /*is_added=*/false);
  }
  if (block.next_sibling != kNone) At(block.next_sibling).previous_sibling = block.previous_sibling;
  if (block.previous_sibling != kNone) {
    At(block.previous_sibling).next_sibling = block.next_sibling;
  } else if (block.next_sibling != kNone) {
    tails_[TailKeyOf(id)] = block.next_sibling;
  } else {
    tails_.erase(TailKeyOf(id));
  }
  const uint32_t holders = block.holders;
  block = Block();
  block.holders = holders;
  if (was_cached) {
    --cached_;
    free_.push_back(id);
  }
}

void BlockManager::Evict() {
  CHECK(oldest_ != kNone);
  Forget(oldest_);
}

void BlockManager::MakeNewest(BlockId id) {
  Block& block = At(id);
  block.older = newest_;
  block.newer = kNone;
  (newest_ == kNone ? oldest_ : At(newest_).newer) = id;
  newest_ = id;
}

void BlockManager::MakeOldest(BlockId id) {
  Block& block = At(id);
  block.newer = oldest_;
  block.older = kNone;
  (oldest_ == kNone ? newest_ : At(oldest_).older) = id;
  oldest_ = id;
}

void BlockManager::LeaveOrder(BlockId id) {
  Block& block = At(id);
  (block.older == kNone ? oldest_ : At(block.older).newer) = block.newer;
  (block.newer == kNone ? newest_ : At(block.newer).older) = block.older;
  block.older = block.newer = kNone;
}

void BlockManager::Audit(std::span<const BlockTable* const> holders) const {
  std::vector<uint32_t> counted(blocks_.size());
  for (const BlockTable* table : holders)
    for (const BlockId id : *table) ++counted.at(static_cast<size_t>(id));
  std::vector<bool> is_free(blocks_.size());
  for (const BlockId id : free_) {
    CHECK(!is_free.at(static_cast<size_t>(id)), "KV block ", id, " is free twice");
    is_free[static_cast<size_t>(id)] = true;
  }
  std::vector<bool> is_cached(blocks_.size());
  for (BlockId id = oldest_; id != kNone; id = At(id).newer) is_cached[static_cast<size_t>(id)] = true;

  size_t held = 0, cached = 0, whole = 0, tails = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = blocks_[i];
    CHECK(block.holders == counted[i], "KV block ", i, " has ", counted[i], " holders, counted ",
          block.holders);
    CHECK(is_free[i] == (block.holders == 0 && block.rows == 0), "KV block ", i);
    CHECK(is_cached[i] == (block.holders == 0 && block.rows > 0), "KV block ", i);
    held += block.holders > 0;
    cached += is_cached[i];
    whole += block.has_key;
    if (block.has_key) CHECK(whole_.at(block.key) == static_cast<BlockId>(i));
    if (block.rows > 0 && block.previous_sibling == kNone) {
      ++tails;
      CHECK(tails_.at(TailKeyOf(static_cast<BlockId>(i))) == static_cast<BlockId>(i));
    }
  }
  CHECK(held == held_ && cached == cached_ && whole == whole_.size() && tails == tails_.size());
  CHECK(free() + held_ + cached_ == total(), free(), " free, ", held_, " held, ", cached_, " cached of ",
        total());
}

}  // namespace terrace
