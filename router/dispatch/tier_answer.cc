#include "router/dispatch/tier_answer.h"

#include <algorithm>
#include <utility>

namespace terrace {

TierAnswer::TierAnswer(const TierView& tier, PromptPtr prompt, RequestPtr request, uint32_t draw)
    : request_(std::move(request)),
      prompt_(std::move(prompt)),
      text_assets_(tier.text),
      model_digest_(tier.model_digest),
      text_digest_(tier.text_digest),
      vocab_size_(tier.vocab_size),
      echo_(EchoText(*request_, *prompt_, *text_assets_->tokenizer)),
      text_(text_assets_, request_, draw) {
  if (draw == 0 && request_->prompt_logprobs().has_value())
    scores_ =
        std::make_unique<PromptScores>(prompt_, text_assets_, vocab_size_, *request_->prompt_logprobs());
}

std::vector<TokenId> TierAnswer::RestOfDraft() const {
  const uint32_t accepted = accepted_draft_tokens();
  if (accepted < log_.size()) return {};
  return {draft_.begin() + accepted, draft_.end()};
}

uint32_t TierAnswer::accepted_draft_tokens() const {
  const auto differ = std::ranges::mismatch(draft_, log_);
  return static_cast<uint32_t>(differ.in1 - draft_.begin());
}

StatusOr<AnswerPiece> TierAnswer::Push(const WorkerToken& token, MonoTime now) {
  RETURN_IF_ERROR(CheckToken(token, vocab_size_));
  RETURN_IF_ERROR(CheckScores());
  if (log_.empty()) first_token_ = now;
  log_.push_back(token.token);
  return text_.Push(token);
}

std::optional<AnswerEnd> TierAnswer::EndOfLog() const {
  if (log_.empty()) return std::nullopt;
  const auto is_last = [this](const std::vector<TokenId>& ends) {
    return std::ranges::find(ends, log_.back()) != ends.end();
  };
  const bool is_end = !request_->ignore_eos() && is_last(text_assets_->tokenizer->special().end);
  if (is_end || is_last(request_->stop_tokens())) return AnswerEnd::kStop;
  if (log_.size() >= limit_) return AnswerEnd::kLength;
  return std::nullopt;
}

Verdict TierAnswer::JudgeEarly(const Gate& gate, MonoTime now) {
  if (verdict_ != Verdict::kUndecided) return verdict_;
  judged_ = text_.signals();
  return verdict_ = gate.JudgeEarly(judged_, now - first_token_);
}

std::optional<MonoTime> TierAnswer::HoldEnd(const Gate& gate) const {
  if (!has_begun() || verdict_ != Verdict::kUndecided || !gate.hold_time().has_value()) return std::nullopt;
  return first_token_ + *gate.hold_time();
}

bool TierAnswer::IsAcceptedBy(const Gate& gate) const {
  if (verdict_ != Verdict::kUndecided) return verdict_ == Verdict::kAccepted;
  return gate.Accepts(text_.signals());
}

}  // namespace terrace
