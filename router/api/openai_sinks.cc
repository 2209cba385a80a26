#include "router/api/openai_sinks.h"

#include <atomic>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "base/retry_after.h"
#include "router/dispatch/attempts.h"

namespace terrace {
namespace {

class WholeAnswerSink : public ReplySink {
 public:
  WholeAnswerSink(CompletionHead head, ReplyHeaders headers, std::shared_ptr<HttpResponder> responder)
      : head_(std::move(head)), headers_(std::move(headers)), responder_(std::move(responder)) {}

  void OnTokensOfPrompt(size_t prompt, std::vector<AnswerToken> tokens) override {
    if (prompt >= prompts_.size()) prompts_.resize(prompt + 1);
    prompts_[prompt] = std::move(tokens);
  }

  void OnPiece(AnswerPiece piece) override {
    if (!head_.logprobs) piece.tokens.clear();
    AnswerPiece& answer = ChoiceAt(piece.choice).answer;
    answer.Append(std::move(piece));
  }

  void OnChoiceEnd(uint32_t choice, const AnswerSummary& summary) override {
    ChoiceAt(choice).end = summary.end;
  }

  void OnFinish(StatusOr<AnswerSummary> total) override {
    if (!total.ok()) return SendError(total.status(), headers_(), *responder_);
    responder_->Send(200, ToJsonText(CompletionJson(head_, choices_, prompts_, *total)), "application/json",
                     headers_());
  }

  bool is_closed() const override { return false; }  // the responder's OnClose cancels the call

 private:
  WholeChoice& ChoiceAt(uint32_t choice) {
    if (choice >= choices_.size()) choices_.resize(choice + 1);
    return choices_[choice];
  }

  const CompletionHead head_;
  const ReplyHeaders headers_;
  const std::shared_ptr<HttpResponder> responder_;
  std::vector<std::vector<AnswerToken>> prompts_;  // their tokens, where they are wanted
  std::vector<WholeChoice> choices_;
};

class EventStreamSink : public ReplySink {
 public:
  EventStreamSink(CompletionHead head, ReplyHeaders headers, std::shared_ptr<HttpResponder> responder)
      : head_(std::move(head)), headers_(std::move(headers)), responder_(std::move(responder)) {}

  void OnTokensOfPrompt(size_t, std::vector<AnswerToken>) override {}  // no chunk has a place for them

  void OnPiece(AnswerPiece piece) override {
    Choice& choice = Begin(piece.choice);
    // A piece of end tokens only says nothing to this client.
    if (!piece.text.empty() || (head_.logprobs && !piece.tokens.empty())) Write(choice.pieces.Next(piece));
    for (const ToolCall& call : piece.tool_calls) {
      Write(SseEvent(CallChunk(head_, piece.choice, call, choice.calls)));
      Write(SseEvent(ArgumentsChunk(head_, piece.choice, call, choice.calls++)));
    }
  }

  void OnChoiceEnd(uint32_t choice, const AnswerSummary& summary) override {
    Begin(choice);
    Write(SseEvent(LastChunk(head_, choice, summary)));
  }

  void OnFinish(StatusOr<AnswerSummary> total) override {
    if (!total.ok()) return Fail(total.status());
    if (head_.include_usage) Write(SseEvent(UsageChunk(head_, *total)));
    Write("data: [DONE]\n\n");
    responder_->Finish();
  }

  bool is_closed() const override { return is_closed_; }
  bool is_too_slow() const override { return responder_->is_too_slow(); }
  bool is_full() const override { return responder_->is_full(); }
  void OnRoom(std::function<void()> on_room) override { responder_->OnRoom(std::move(on_room)); }

 private:
  struct Choice {
    PieceEvents pieces;
    size_t calls = 0;
  };

  Choice& Begin(uint32_t choice) {
    if (begun_.empty()) {
      HttpHeaders headers = std::exchange(headers_, nullptr)();
      headers.emplace_back("cache-control", "no-cache");
      responder_->StartStream(200, "text/event-stream", headers);
    }
    if (const auto found = begun_.find(choice); found != begun_.end()) return found->second;
    Choice& begun = begun_.emplace(choice, Choice{PieceEvents(head_, choice)}).first->second;
    if (head_.is_chat) Write(SseEvent(FirstChunk(head_, choice)));
    return begun;
  }

  void Fail(const Status& error) {
    if (begun_.empty()) return SendError(error, headers_(), *responder_);
    if (is_closed_) return responder_->Abort();  // nobody reads
    Write(SseEvent(ErrorJson(error)));
    responder_->Finish();
  }

  void Write(std::string event) {
    if (!responder_->Write(std::move(event))) is_closed_ = true;
  }

  const CompletionHead head_;
  ReplyHeaders headers_;  // null once the reply's head is out: a stream may go on for long
  const std::shared_ptr<HttpResponder> responder_;
  std::map<uint32_t, Choice> begun_;
  std::atomic<bool> is_closed_ = false;
};

}  // namespace

std::shared_ptr<ReplySink> MakeWholeAnswerSink(CompletionHead head, ReplyHeaders headers,
                                               std::shared_ptr<HttpResponder> responder) {
  return std::make_shared<WholeAnswerSink>(std::move(head), std::move(headers), std::move(responder));
}

std::shared_ptr<ReplySink> MakeEventStreamSink(CompletionHead head, ReplyHeaders headers,
                                               std::shared_ptr<HttpResponder> responder) {
  return std::make_shared<EventStreamSink>(std::move(head), std::move(headers), std::move(responder));
}

void SendError(const Status& error, HttpHeaders headers, HttpResponder& responder) {
  const int status = HttpStatusOf(error);
  const auto retry_after = RetryAfter(error);
  // Without a new manifest the same model is refused the next time, too.
  const bool may_pass = status == 503 && Reason(error) != kNotCertifiedReason;
  if (may_pass || retry_after.has_value()) {
    headers.emplace_back("retry-after", std::to_string(std::lround(std::ceil(retry_after.value_or(1)))));
  }
  if (status == 401) headers.emplace_back("www-authenticate", "Bearer");
  responder.Send(status, ToJsonText(ErrorJson(error)), "application/json", headers);
}

}  // namespace terrace
