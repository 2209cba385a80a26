// How often a draft model guesses what another model says: its worth for speculative decoding, whose answers
// are those of that other model whatever the draft is.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "text/tokenizer.h"
#include "tools/quality/scoring_model.h"

namespace terrace {

struct DraftAcceptance {
  uint64_t answers = 0;
  uint64_t tokens = 0;  // of the answers
  uint64_t agreed = 0;  // those that the draft has for the likeliest, too
  uint64_t passes = 0;  // of the model that answers, with `draft_tokens` guesses each

  // An answer, whether the draft agrees with each of its tokens: a pass verifies up to `draft_tokens` guesses
  // and adds one token of its own behind those that agree.
  void Add(std::span<const bool> agrees, uint32_t draft_tokens);
  double rate() const { return tokens == 0 ? 0 : static_cast<double>(agreed) / static_cast<double>(tokens); }
  double tokens_per_pass() const {
    return passes == 0 ? 0 : static_cast<double>(tokens) / static_cast<double>(passes);
  }
};

inline constexpr uint32_t kDraftTokens = 4;    // of a pass
inline constexpr uint32_t kAnswerTokens = 64;  // of an answer, at most

// Lets `model` answer each prompt greedily and asks `draft` about every token. Both have one vocabulary
// (CHECK); prompts that leave no room for an answer are passed over. INTERNAL, reason numeric_error, when a
// logit is not finite; CANCELLED when is_cancelled, asked before each prompt, says so.
StatusOr<DraftAcceptance> MeasureAcceptance(ScoringModel& model, ScoringModel& draft,
                                            std::span<const std::vector<TokenId>> prompts,
                                            const std::function<bool()>& is_cancelled = nullptr);

}  // namespace terrace
