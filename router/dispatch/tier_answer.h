// One tier's answer so far, whichever of its replicas gave which part: the log of its tokens, behind which
// any replica of the same model goes on, and the text made of them. Owned by a Generation; one thread at a
// time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "router/cluster/cluster_view.h"
#include "router/dispatch/answer_text.h"
#include "router/dispatch/draft.h"
#include "router/dispatch/prompt.h"
#include "router/dispatch/prompt_scores.h"
#include "router/tier/gate.h"

namespace terrace {

class TierAnswer {
 public:
  // Draw 0 has the prompt's scores, when the request wants them.
  TierAnswer(const TierView& tier, PromptPtr prompt, RequestPtr request, uint32_t draw);

  // Whether the tier still serves the model and the tokenizer that gave it: no other may go on with it.
  bool IsOf(const TierView& tier) const {
    return tier.model_digest == model_digest_ && tier.text_digest == text_digest_;
  }
  const std::string& model_digest() const { return model_digest_; }
  const PromptPtr& prompt() const { return prompt_; }
  const std::vector<TokenId>& log() const { return log_; }
  bool has_begun() const { return !log_.empty(); }
  const AnswerText& text() const { return text_; }
  const std::string& echo() const { return echo_; }

  // What it may become, from another tier.
  void Propose(std::vector<TokenId> draft) { draft_ = std::move(draft); }
  std::vector<TokenId> RestOfDraft() const;  // behind the log; none when the log is not as it was proposed
  uint32_t accepted_draft_tokens() const;    // so far: that the log has too, from its beginning
  Draft ToDraft() const { return {log_, text_assets_, text_digest_}; }

  // Of the prompt. INTERNAL (worker_protocol), as the next two, for what is not as it should be.
  Status AddScores(const std::vector<WorkerToken>& scores) { return scores_->Add(scores); }
  Status CheckScores() const { return has_scores() ? scores_->CheckComplete() : Status(); }
  bool has_scores() const { return scores_ != nullptr; }
  bool needs_scores() const { return has_scores() && !has_begun(); }       // of the next attempt
  std::vector<AnswerToken> TakePromptTokens() { return scores_->Take(); }  // once

  // Logs a token: what may be shown after it.
  StatusOr<AnswerPiece> Push(const WorkerToken& token, MonoTime now);
  AnswerPiece Finish() { return text_.Finish(); }
  void Hold(AnswerPiece piece) { held_.Append(std::move(piece)); }
  AnswerPiece TakeHeld() { return std::exchange(held_, {}); }

  // What its worker has learnt of its own drafts, for the next attempt; "": nothing.
  void SetDraftRecord(const std::string& record) { draft_record_ = record; }
  const std::string& draft_record() const { return draft_record_; }

  // The tokens that it may have; before the first of them.
  void SetLimit(uint32_t tokens) { limit_ = tokens; }
  uint32_t limit() const { return limit_; }
  // How it ended, if its last token is the last one there may be.
  std::optional<AnswerEnd> EndOfLog() const;

  // Decides, perhaps, before its end; once.
  Verdict JudgeEarly(const Gate& gate, MonoTime now);
  // When that is due though no further token comes; absent: it is not, or has not begun, or it is decided.
  std::optional<MonoTime> HoldEnd(const Gate& gate) const;
  Verdict verdict() const { return verdict_; }
  // What a gate has judged, or would judge now.
  AnswerSignals judged() const { return verdict_ == Verdict::kUndecided ? text_.signals() : judged_; }
  bool IsAcceptedBy(const Gate& gate) const;  // at its end
  // No further token is wanted.
  bool is_over() const { return text_.is_stopped() || verdict_ == Verdict::kRejected; }

  // An attempt that began it, or went on with it, broke off; it had so much of the prompt in its cache.
  void Interrupt(uint32_t cached_tokens) { cached_tokens_ = CachedTokens(cached_tokens); }
  // Of the attempt that began it: `of_this_attempt` unless there was another before.
  uint32_t CachedTokens(uint32_t of_this_attempt) const { return cached_tokens_.value_or(of_this_attempt); }

 private:
  const RequestPtr request_;
  const PromptPtr prompt_;
  const std::shared_ptr<const TextAssets> text_assets_;
  const std::string model_digest_, text_digest_;
  const uint32_t vocab_size_;
  const std::string echo_;
  AnswerText text_;
  std::unique_ptr<PromptScores> scores_;  // null: nobody wants them of this answer
  std::vector<TokenId> log_, draft_;
  AnswerPiece held_;  // one piece, so that no sink's buffer is flooded
  std::string draft_record_;
  uint32_t limit_ = 0;
  MonoTime first_token_ = {};
  Verdict verdict_ = Verdict::kUndecided;
  AnswerSignals judged_ = {};  // with the verdict
  std::optional<uint32_t> cached_tokens_;
};

}  // namespace terrace
