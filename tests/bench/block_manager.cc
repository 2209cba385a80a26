// What the calls of the block manager cost, for a pool of 20,000 blocks of 16 that is full of cached
// prefixes.
#include <cstdio>
#include <random>

#include "tests/bench/timings.h"
#include "text/block_key.h"
#include "worker/kv/block_manager.h"

namespace terrace {
namespace {

constexpr uint32_t kBlocks = 20'000, kBlockTokens = 16, kTokens = 1024, kRounds = 5000;

struct Prompt {
  std::vector<int32_t> tokens;
  std::vector<Hash128> keys;
};

class Bench {
 public:
  void Run() {
    // Twice as much as fits, so that every Allocate evicts.
    for (uint32_t i = 0; i < 2 * kBlocks * kBlockTokens / kTokens; ++i) Compute(Draw());
    allocate_ = {}, publish_ = {}, release_ = {};
    for (uint32_t round = 0; round < kRounds; ++round) {
      Prompt prompt = Draw();
      Match(prompt, miss_);
      Compute(prompt);
      Match(prompt, hit_);
      Prompt other = prompt;  // goes on differently within the last block
      other.tokens.back() += 1;
      other.keys.clear();
      ExtendBlockKeys(root_, other.tokens, kBlockTokens, other.keys);
      Match(other, tail_);
      Share(prompt);
    }
    Timings::PrintHeader();
    keys_.Print("keys of 1,024 tokens");
    hit_.Print("Match, 1,024 tokens found");
    tail_.Print("Match, 1,023 tokens found, a tail");
    miss_.Print("Match, nothing found");
    share_.Print("Share, 64 blocks");
    allocate_.Print("Allocate, 64 blocks, evicting");
    publish_.Print("Publish, 63 whole blocks");
    publish_row_.Print("Publish, one row more");
    release_.Print("Release, 64 blocks");
  }

 private:
  template <typename Function>
  static void Time(Timings& timings, const Function& function) {
    const Duration begin = ThreadTime();
    function();
    timings.Add(ThreadTime() - begin);
  }

  Prompt Draw() {
    Prompt prompt;
    prompt.tokens.resize(kTokens);
    for (int32_t& token : prompt.tokens) token = static_cast<int32_t>(random_() % 30'000);
    Time(keys_, [&] { ExtendBlockKeys(root_, prompt.tokens, kBlockTokens, prompt.keys); });
    return prompt;
  }

  void Match(const Prompt& prompt, Timings& timings) {
    Time(timings, [&] { matched_ += blocks_.Match(root_, prompt.keys, prompt.tokens, kTokens).tokens; });
  }

  void Compute(const Prompt& prompt) {
    BlockTable table;
    Time(allocate_, [&] { CHECK(blocks_.Allocate(kTokens / kBlockTokens, table).ok()); });
    const std::span<const int32_t> tokens(prompt.tokens);
    const auto parent = [&](size_t i) { return i == 0 ? root_ : prompt.keys[i - 1]; };
    // The last block grows by a row at a time, as answers do.
    Time(publish_, [&] {
      for (size_t i = 0; i + 1 < table.size(); ++i) {
        table[i] = blocks_.Publish(table[i], parent(i), tokens.subspan(i * kBlockTokens, kBlockTokens),
                                   prompt.keys[i]);
      }
    });
    const size_t last = table.size() - 1;
    for (size_t rows = 1; rows <= kBlockTokens; ++rows) {
      const auto key = rows == kBlockTokens ? std::optional(prompt.keys[last]) : std::nullopt;
      Time(publish_row_, [&] {
        table[last] =
            blocks_.Publish(table[last], parent(last), tokens.subspan(last * kBlockTokens, rows), key);
      });
    }
    Time(release_, [&] { blocks_.Release(table); });
  }

  void Share(const Prompt& prompt) {
    PrefixMatch match = blocks_.Match(root_, prompt.keys, prompt.tokens, kTokens);
    CHECK(match.tokens == kTokens);
    Time(share_, [&] {
      for (const BlockId block : match.blocks) blocks_.Share(block);
    });
    blocks_.Release(match.blocks);
  }

  BlockManager blocks_{{.blocks = kBlocks, .block_tokens = kBlockTokens}};
  const Hash128 root_ = RootBlockKey({});
  std::mt19937 random_{1};
  uint64_t matched_ = 0;  // so that no Match is left out
  Timings keys_, hit_, tail_, miss_, share_, allocate_, publish_, publish_row_, release_;
};

}  // namespace
}  // namespace terrace

int main() { terrace::Bench().Run(); }
