#include "tools/distill/acceptance.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace terrace {
namespace {

constexpr size_t kChunk = 64;  // tokens whose logits are in memory at once

StatusOr<TokenId> Likeliest(std::span<const float> logits) {
  if (!std::ranges::all_of(logits, [](float logit) { return std::isfinite(logit); }))
    return WithReason(Internal("a logit is not finite"), "numeric_error");
  return static_cast<TokenId>(std::ranges::max_element(logits) - logits.begin());
}

// The likeliest tokens behind positions [from, tokens.size() - 1), of which none was scored before.
StatusOr<std::vector<TokenId>> Guesses(ScoringModel& model, std::span<const TokenId> tokens, size_t from) {
  const size_t vocabulary = model.files().config.vocab_size, end = tokens.size() - 1;
  std::vector<TokenId> guesses;
  for (size_t first = 0; first < end; first += kChunk) {
    const size_t count = std::min(kChunk, end - first);
    const auto logits = model.Score(tokens, first, count);
    for (size_t i = 0; i < count; ++i) {
      if (first + i < from) continue;
      ASSIGN_OR_RETURN(const TokenId token, Likeliest(logits.subspan(i * vocabulary, vocabulary)));
      guesses.push_back(token);
    }
  }
  return guesses;
}

// `prompt` and the greedy answer to it, up to the model's end token.
StatusOr<std::vector<TokenId>> Answered(ScoringModel& model, std::vector<TokenId> prompt, size_t most) {
  const size_t vocabulary = model.files().config.vocab_size;
  const std::vector<TokenId>& end = model.files().text->tokenizer->special().end;
  std::vector<TokenId> tokens = std::move(prompt);
  for (size_t scored = 0; tokens.size() < most;) {
    std::span<const float> logits;
    while (scored < tokens.size()) {
      const size_t count = std::min(kChunk, tokens.size() - scored);
      logits = model.Score(tokens, scored, count).last(vocabulary);
      scored += count;
    }
    ASSIGN_OR_RETURN(const TokenId token, Likeliest(logits));
    tokens.push_back(token);
    if (std::ranges::find(end, token) != end.end()) break;
  }
  return tokens;
}

}  // namespace

void DraftAcceptance::Add(std::span<const bool> agrees, uint32_t draft_tokens) {
  ++answers;
  tokens += agrees.size();
  agreed += static_cast<uint64_t>(std::ranges::count(agrees, true));
  for (size_t at = 0; at < agrees.size(); ++passes) {
    const auto guessed = agrees.subspan(at, std::min<size_t>(draft_tokens, agrees.size() - at));
    at += static_cast<size_t>(std::ranges::find(guessed, false) - guessed.begin()) + 1;
  }
}

StatusOr<DraftAcceptance> MeasureAcceptance(ScoringModel& model, ScoringModel& draft,
                                            std::span<const std::vector<TokenId>> prompts,
                                            const std::function<bool()>& is_cancelled) {
  CHECK(model.files().config.vocab_size == draft.files().config.vocab_size);
  const size_t most = std::min(model.max_tokens(), draft.max_tokens());
  DraftAcceptance out;
  for (const std::vector<TokenId>& prompt : prompts) {
    if (is_cancelled && is_cancelled()) return Cancelled("interrupted");
    if (prompt.empty() || prompt.size() >= most) continue;
    ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                     Answered(model, prompt, std::min(most, prompt.size() + kAnswerTokens)));
    ASSIGN_OR_RETURN(const std::vector<TokenId> guesses, Guesses(draft, tokens, prompt.size() - 1));
    const auto agrees = std::make_unique<bool[]>(guesses.size());
    for (size_t i = 0; i < guesses.size(); ++i) agrees[i] = guesses[i] == tokens[prompt.size() + i];
    out.Add(std::span(agrees.get(), guesses.size()), kDraftTokens);
  }
  return out;
}

}  // namespace terrace
