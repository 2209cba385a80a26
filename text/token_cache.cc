#include "text/token_cache.h"

#include <iterator>
#include <list>
#include <mutex>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace terrace {
namespace {

constexpr size_t kShards = 16;  // with a lock each

struct Entry {
  TokenCache::Space space;
  uint64_t key;  // of the shard's index
  std::string text;
  std::vector<TokenId> tokens;

  bool IsOf(const TokenCache::Space& other_space, std::string_view other_text) const {
    return space == other_space && text == other_text;
  }
  size_t bytes() const {
    constexpr size_t kLinks = 64;  // in the list and in the index
    return sizeof(Entry) + kLinks + text.capacity() + tokens.capacity() * sizeof(TokenId);
  }
};

Hash128 KeyOf(const TokenCache::Space& space, std::string_view text) {
  return HashBytes(text, space.tokenizer ^ space.scope.low);
}

}  // namespace

class TokenCache::Shard {
 public:
  explicit Shard(size_t max_bytes) : max_bytes_(max_bytes) {}

  bool Append(const Space& space, uint64_t key, std::string_view text, std::vector<TokenId>& out) {
    std::lock_guard lock(mutex_);
    const auto found = index_.find(key);
    const bool is_known = found != index_.end() && found->second->IsOf(space, text);
    (is_known ? counts_.hit : counts_.missed) += text.size();
    if (!is_known) return false;
    Touch(found->second);
    const std::vector<TokenId>& tokens = found->second->tokens;
    out.insert(out.end(), tokens.begin(), tokens.end());
    return true;
  }

  void Put(Entry entry) {
    if (entry.bytes() > max_bytes_) return;
    std::list<Entry> added, dropped;  // made, and destroyed, without the lock
    added.push_back(std::move(entry));
    std::lock_guard lock(mutex_);
    const Entry& next = added.front();
    if (const auto found = index_.find(next.key); found != index_.end()) {
      // Another thread was faster; or another text has this key, and makes room.
      if (found->second->IsOf(next.space, next.text)) return Touch(found->second);
      Drop(found->second, dropped);
    }
    bytes_ += next.bytes();
    index_[next.key] = added.begin();
    entries_.splice(entries_.begin(), added);
    while (bytes_ > max_bytes_) Drop(std::prev(entries_.end()), dropped);
  }

  size_t bytes() const {
    std::lock_guard lock(mutex_);
    return bytes_;
  }
  Counts counts() const {
    std::lock_guard lock(mutex_);
    return counts_;
  }

 private:
  using Place = std::list<Entry>::iterator;

  // Both with the lock.
  void Touch(Place entry) { entries_.splice(entries_.begin(), entries_, entry); }
  void Drop(Place entry, std::list<Entry>& dropped) {
    bytes_ -= entry->bytes();
    index_.erase(entry->key);
    dropped.splice(dropped.end(), entries_, entry);
  }

  const size_t max_bytes_;
  mutable std::mutex mutex_;
  // All GUARDED_BY(mutex_):
  std::list<Entry> entries_;  // the one that was used last first
  absl::flat_hash_map<uint64_t, Place> index_;
  size_t bytes_ = 0;
  Counts counts_;
};

TokenCache::TokenCache(size_t max_bytes) {
  for (size_t i = 0; i < kShards; ++i) shards_.push_back(std::make_unique<Shard>(max_bytes / kShards));
}
TokenCache::~TokenCache() = default;

TokenCache::Shard& TokenCache::ShardOf(const Hash128& key) const { return *shards_[key.high % kShards]; }

bool TokenCache::Append(const Space& space, std::string_view text, std::vector<TokenId>& out) {
  const Hash128 key = KeyOf(space, text);
  return ShardOf(key).Append(space, key.low, text, out);
}

void TokenCache::Put(const Space& space, std::string_view text, std::span<const TokenId> tokens) {
  const Hash128 key = KeyOf(space, text);
  ShardOf(key).Put({space, key.low, std::string(text), {tokens.begin(), tokens.end()}});
}

size_t TokenCache::bytes() const {
  size_t sum = 0;
  for (const auto& shard : shards_) sum += shard->bytes();
  return sum;
}

TokenCache::Counts TokenCache::counts() const {
  Counts sum;
  for (const auto& shard : shards_) {
    const Counts part = shard->counts();
    sum.hit += part.hit;
    sum.missed += part.missed;
  }
  return sum;
}

}  // namespace terrace
