#include "router/dispatch/answer_text.h"

#include <algorithm>
#include <utility>

#include "base/hash.h"

namespace terrace {
namespace {

// Of call `index` of an answer; never another request's, as no two arrive at one moment under one id.
// Mistral's templates take nine letters and digits only.
std::string CallId(const Request& request, uint32_t draw, size_t index, ToolCallFormat format) {
  const int64_t arrival = request.arrival().time_since_epoch().count();
  const std::string hex = HashBytes(Concat(request.request_id(), " ", arrival, " ", draw, " ", index)).Hex();
  return format == ToolCallFormat::kMistral ? hex.substr(0, 9) : "call_" + hex.substr(0, 24);
}

}  // namespace

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

AnswerText::AnswerText(std::shared_ptr<const TextAssets> text, RequestPtr request, uint32_t draw)
    : text_(std::move(text)),
      request_(std::move(request)),
      detokenizer_(*text_->tokenizer),
      stops_(request_->stop()),
      draw_(draw) {
  const ToolCallFormat format = text_->tool_call_format();
  if (!request_->tools().empty() && format != ToolCallFormat::kNone)
    calls_ = std::make_unique<ToolCallParser>(format, request_->tools(), request_->max_tool_calls());
}

// A control token by which the model says that calls begin or end; its text is not shown otherwise.
bool AnswerText::IsCallMark(const WorkerToken& token) const {
  const Tokenizer& tokenizer = *text_->tokenizer;
  return calls_ != nullptr && tokenizer.IsControl(token.token) &&
         IsToolCallMark(text_->tool_call_format(), tokenizer.TokenBytes(token.token, /*with_control=*/true));
}

AnswerPiece AnswerText::Push(const WorkerToken& token) {
  meter_.Add(token.logprob, token.margin, token.entropy);
  if (is_stopped()) return {};
  Logged logged{.token = ToAnswerToken(token, *text_->tokenizer, request_->top_logprobs()),
                .begin = produced_};
  const auto& stop_tokens = request_->stop_tokens();
  const bool is_stop_token =
      std::find(stop_tokens.begin(), stop_tokens.end(), token.token) != stop_tokens.end();
  if (is_stop_token) logged.token.is_control = true;
  std::string text;
  if (!is_stop_token && IsCallMark(token)) {
    text = detokenizer_.Finish();
    text += text_->tokenizer->TokenBytes(token.token, /*with_control=*/true);
  } else if (!is_stop_token) {
    text = detokenizer_.Push(token.token);
  }
  produced_ += text.size();
  logged.end = produced_;
  held_.push_back(std::move(logged));
  AnswerPiece piece = Release(stops_.Push(text));
  return TakeCalls(std::move(piece), /*is_last=*/stops_.stopped());
}

AnswerPiece AnswerText::Finish() {
  if (is_stopped()) return {};
  const std::string rest = detokenizer_.Finish();
  produced_ += rest.size();
  std::string text = stops_.Push(rest);
  if (!is_stopped()) text += stops_.Finish();
  return TakeCalls(Release(std::move(text)), /*is_last=*/true);
}

AnswerPiece AnswerText::Release(std::string text) {
  shown_ += text.size();
  AnswerPiece piece{.text = std::move(text)};
  const bool is_last = stops_.stopped();
  const auto shown_end = std::ranges::find_if(held_, [this, is_last](const Logged& logged) {
    return is_last ? logged.begin >= shown_ : logged.end > shown_;
  });
  piece.tokens.reserve(static_cast<size_t>(shown_end - held_.begin()));
  for (auto logged = held_.begin(); logged != shown_end; ++logged)
    piece.tokens.push_back(std::move(logged->token));
  held_.erase(held_.begin(), is_last ? held_.end() : shown_end);
  return piece;
}

AnswerPiece AnswerText::TakeCalls(AnswerPiece piece, bool is_last) {
  if (calls_ == nullptr) return piece;
  const size_t before = calls_->calls();
  ToolCallParser::Piece parsed = calls_->Push(piece.text);
  if (is_last) parsed.content += calls_->Finish().content;
  piece.text = std::move(parsed.content);
  piece.tool_calls = std::move(parsed.calls);
  for (size_t i = 0; i < piece.tool_calls.size(); ++i) {
    piece.tool_calls[i].id = CallId(*request_, draw_, before + i, text_->tool_call_format());
  }
  return piece;
}

}  // namespace terrace
