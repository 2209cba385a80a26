#include "router/dispatch/prompt_scores.h"

#include <utility>

#include "router/dispatch/answer_text.h"

namespace terrace {

PromptScores::PromptScores(PromptPtr prompt, std::shared_ptr<const TextAssets> text, uint32_t vocab_size,
                           uint32_t top)
    : prompt_(std::move(prompt)), text_(std::move(text)), vocab_size_(vocab_size), top_(top) {
  Append({.token = prompt_->front()});
}

Status PromptScores::Add(const std::vector<WorkerToken>& scores) {
  for (const WorkerToken& score : scores) {
    RETURN_IF_ERROR(CheckToken(score, vocab_size_));
    if (count_ >= prompt_->size() || score.token != (*prompt_)[count_]) {
      return WithReason(Internal("the worker scored another token"), "worker_protocol");
    }
    Append(score);
  }
  return {};
}

Status PromptScores::CheckComplete() const {
  if (count_ == prompt_->size()) return {};
  return WithReason(Internal("the worker scored too few tokens"), "worker_protocol");
}

void PromptScores::Append(const WorkerToken& token) {
  ++count_;
  const Tokenizer& tokenizer = *text_->tokenizer;
  tokens_.push_back(ToAnswerToken(token, tokenizer, top_));
  tokens_.back().bytes = tokenizer.TokenBytes(token.token, /*with_control=*/true);
}

}  // namespace terrace
