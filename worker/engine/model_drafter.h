// Drafts of a smaller model with the same tokens: what it would say itself, drawn with the same parameters
// and the same random numbers as the answer, so that both agree as often as they can. A branch is the
// likeliest token beside the first one of the draft, where it is not much less likely: the pass has told of
// it, while one behind it would be a second row of every other pass. It runs on an Executor with a KV pool of
// its own. Owned by the Engine's Speculation; its loop thread only.
//
// A sequence's keys and values stay between calls: a call computes what the answer has got since, many tokens
// in one pass for all sequences, then a token of each draft a pass. What was drafted and not accepted is
// overwritten. A call catches up on a bounded number of tokens, so that long prompts are read over several; a
// sequence that is not there yet gets no draft. It has the blocks of all its tokens before the first of them
// is computed. When blocks run out, the sequences that were not asked for the longest give theirs up; one of
// this call that finds too few gives its own up, so that others go on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "worker/engine/executor.h"
#include "worker/kv/block_manager.h"
#include "worker/speculative/drafter.h"

namespace terrace {

class ModelDrafter : public Drafter {
 public:
  struct Options {
    uint32_t context_length = 0;  // of the model
    uint32_t block_tokens = 16;
    uint32_t blocks = 0;
    uint32_t max_pass_tokens = 256;  // of a call's first pass; more where sequences need 2 each
  };

  ModelDrafter(const Options& options, std::unique_ptr<Executor> executor);

  std::string_view name() const override { return "model"; }
  bool is_cheap() const override { return false; }
  std::optional<uint32_t> MissingTokens(const DraftRequest& request) const override;
  uint32_t max_pass_tokens() const override { return options_.max_pass_tokens; }
  StatusOr<Drafts> Propose(std::span<const DraftRequest> requests) override;
  void Forget(uint64_t id) override;

  size_t free_blocks() const { return blocks_.free(); }
  size_t total_blocks() const { return blocks_.total(); }

 private:
  struct Sequence {
    std::vector<int32_t> tokens;  // whose keys and values are in `blocks`, by position
    uint32_t right = 0;           // so many of them are known to be the sequence's own
    BlockTable blocks;
    uint64_t last_call = 0;
  };
  // One request's way through a call.
  struct Work {
    const DraftRequest* request = nullptr;
    Sequence* sequence = nullptr;
    std::vector<int32_t>* draft = nullptr;
    std::vector<int32_t>* branch = nullptr;
    uint32_t most = 0;        // tokens of the draft
    uint32_t chunk = 0;       // tokens of the next pass; 0: it takes part in no more
    TokenCounts counts = {};  // with the draft's, where there are penalties
  };

  // Tokens of a sequence that keys and values may be kept of.
  size_t limit() const {
    return std::min<size_t>(options_.context_length, blocks_.total() * options_.block_tokens);
  }
  static uint32_t OwnTokens(const Sequence& sequence, std::span<const int32_t> tokens);
  std::vector<Work> Begin(std::span<const DraftRequest> requests, Drafts& drafts);
  bool PlanFirstPass(Work& work, uint32_t budget);
  bool TakeBlocks(Sequence& sequence, size_t tokens);
  void StartAnew(Sequence& sequence);
  StatusOr<bool> RunPass(std::span<Work> works, Drafts& drafts);
  void TakeToken(Work& work, const SequenceOutput& output);
  static void TakeBranch(const SampledToken& first, std::vector<int32_t>& branch);
  void Release(uint64_t id);

  const Options options_;
  const std::unique_ptr<Executor> executor_;
  BlockManager blocks_;
  std::unordered_map<uint64_t, Sequence> sequences_;
  uint64_t calls_ = 0;
};

}  // namespace terrace
