// Guesses how answers go on. What is guessed is verified by the model that answers: it decides when tokens
// come, never which. Owned by the Engine and used by its loop thread only. Implementations: NgramDrafter
// (ngram_drafter.h), ModelDrafter (worker/engine/model_drafter.h), RemoteDrafter
// (worker/server/remote_drafter.h), and FakeDrafter, of tests.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "worker/sample/sampler.h"
#include "worker/sample/sampling_params.h"

namespace terrace {

// A sequence that wants a draft. Borrowed for the call.
struct DraftRequest {
  uint64_t id = 0;  // of the sequence: an id that is new is a sequence that is new
  std::span<const int32_t>
      tokens;  // prompt, then the answer so far: those of the last call, and what follows
  uint32_t prompt_tokens = 0;
  const SamplingParams* sampling = nullptr;
  const TokenCounts* counts = nullptr;
  uint32_t most = 0;                 // tokens of the draft
  uint32_t most_branch = 0;          // of a branch (see Drafts); 0: none is wanted
  std::string_view cache_salt = {};  // of the sequence's prefixes (SequenceSpec)

  uint32_t generated() const { return static_cast<uint32_t>(tokens.size()) - prompt_tokens; }
};

struct Drafts {
  std::vector<std::vector<int32_t>> tokens;  // of each request: `most` of them at most, or none
  // A second guess of each request, which begins with another token than the first: `most_branch` tokens at
  // most, or none. Of all or, where the drafter has none for anybody, of nobody.
  std::vector<std::vector<int32_t>> branches = {};
  // Tokens that each pass of a model computed, pass by pass; none where no model ran, or where what they took
  // says nothing of passes like them.
  std::vector<uint32_t> passes = {};
};

class Drafter {
 public:
  virtual ~Drafter() = default;

  virtual std::string_view name() const = 0;  // a label of metrics
  // True where a draft costs next to nothing: then one is asked for even to see whether it would be right.
  virtual bool is_cheap() const = 0;
  // Tokens that have to be computed before the first one of a draft is there. None where there will be no
  // draft, however often it is asked for.
  virtual std::optional<uint32_t> MissingTokens(const DraftRequest& request) const = 0;
  // Of these a call computes no more, for all sequences: the rest comes in the next calls.
  virtual uint32_t max_pass_tokens() const = 0;
  // An error is for good: the drafter is not asked again. What it holds of sequences is bounded; those it has
  // no room for get no draft.
  virtual StatusOr<Drafts> Propose(std::span<const DraftRequest> requests) = 0;
  // The sequence has ended. It may be one that was never asked for.
  virtual void Forget(uint64_t id) = 0;
};

}  // namespace terrace
