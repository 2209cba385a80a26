#include "router/dispatch/answer_text.h"

#include <algorithm>
#include <utility>

namespace terrace {

AnswerToken ToAnswerToken(const WorkerToken& token, const Tokenizer& tokenizer, uint32_t top) {
  AnswerToken out{.id = token.token,
                  .logprob = token.logprob,
                  .bytes = std::string(tokenizer.TokenBytes(token.token)),
                  .is_control = tokenizer.IsControl(token.token)};
  for (size_t i = 0; i < std::min<size_t>(token.top.size(), top); ++i) {
    const auto& [id, logprob] = token.top[i];
    out.top.push_back({id, logprob, std::string(tokenizer.TokenBytes(id, /*with_control=*/true))});
  }
  return out;
}

Status CheckToken(const WorkerToken& token, uint32_t vocab_size) {
  const auto exists = [&](TokenId id) { return static_cast<uint32_t>(id) < vocab_size; };
  const bool all_exist =
      exists(token.token) &&
      std::all_of(token.top.begin(), token.top.end(), [&](const auto& top) { return exists(top.token); });
  return all_exist ? Status()
                   : WithReason(Internal("the worker sent a token that does not exist"), "worker_protocol");
}

AnswerText::AnswerText(std::shared_ptr<const TextAssets> text, RequestPtr request)
    : text_(std::move(text)),
      request_(std::move(request)),
      detokenizer_(*text_->tokenizer),
      stops_(request_->stop()) {}

AnswerPiece AnswerText::Push(const WorkerToken& token) {
  ++tokens_;
  sum_logprob_ += token.logprob;
  if (is_stopped()) return {};
  Logged logged{.token = ToAnswerToken(token, *text_->tokenizer, request_->top_logprobs()),
                .begin = produced_};
  const auto& stop_tokens = request_->stop_tokens();
  const bool is_stop_token =
      std::find(stop_tokens.begin(), stop_tokens.end(), token.token) != stop_tokens.end();
  if (is_stop_token) logged.token.is_control = true;
  const std::string text = is_stop_token ? std::string() : detokenizer_.Push(token.token);
  produced_ += text.size();
  logged.end = produced_;
  held_.push_back(std::move(logged));
  return Release(stops_.Push(text));
}

AnswerPiece AnswerText::Finish() {
  if (is_stopped()) return {};
  const std::string rest = detokenizer_.Finish();
  produced_ += rest.size();
  std::string text = stops_.Push(rest);
  if (!is_stopped()) text += stops_.Finish();
  return Release(std::move(text));
}

AnswerSignals AnswerText::signals() const {
  return {.tokens = tokens_, .mean_logprob = tokens_ == 0 ? 0 : sum_logprob_ / tokens_};
}

AnswerPiece AnswerText::Release(std::string text) {
  shown_ += text.size();
  AnswerPiece piece{.text = std::move(text)};
  while (!held_.empty() && (is_stopped() ? held_.front().begin < shown_ : held_.front().end <= shown_)) {
    piece.tokens.push_back(std::move(held_.front().token));
    held_.pop_front();
  }
  if (is_stopped()) held_.clear();
  return piece;
}

}  // namespace terrace
