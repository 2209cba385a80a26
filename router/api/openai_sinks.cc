#include "router/api/openai_sinks.h"

#include <atomic>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

namespace terrace {
namespace {

constexpr char kRequestIdHeader[] = "x-request-id";

class WholeAnswerSink : public AnswerSink {
 public:
  WholeAnswerSink(CompletionHead head, std::string request_id, std::shared_ptr<HttpResponder> responder)
      : head_(std::move(head)), request_id_(std::move(request_id)), responder_(std::move(responder)) {}

  void OnPromptTokens(std::vector<AnswerToken> tokens) override { prompt_tokens_ = std::move(tokens); }

  void OnPiece(AnswerPiece piece) override {
    AnswerPiece& answer = ChoiceAt(piece.choice).answer;
    answer.text += piece.text;
    if (!head_.logprobs) return;
    std::move(piece.tokens.begin(), piece.tokens.end(), std::back_inserter(answer.tokens));
  }

  void OnChoiceEnd(uint32_t choice, const AnswerSummary& summary) override {
    ChoiceAt(choice).end = summary.end;
  }

  void OnFinish(StatusOr<AnswerSummary> total) override {
    if (!total.ok()) return SendError(total.status(), request_id_, *responder_);
    responder_->Send(200, ToJsonText(CompletionJson(head_, choices_, prompt_tokens_, *total)),
                     "application/json", {{kRequestIdHeader, request_id_}});
  }

  bool is_closed() const override { return false; }  // the responder's OnClose cancels the call

 private:
  WholeChoice& ChoiceAt(uint32_t choice) {
    if (choice >= choices_.size()) choices_.resize(choice + 1);
    return choices_[choice];
  }

  const CompletionHead head_;
  const std::string request_id_;
  const std::shared_ptr<HttpResponder> responder_;
  std::vector<AnswerToken> prompt_tokens_;
  std::vector<WholeChoice> choices_;
};

class EventStreamSink : public AnswerSink {
 public:
  EventStreamSink(CompletionHead head, std::string request_id, std::shared_ptr<HttpResponder> responder)
      : head_(std::move(head)), request_id_(std::move(request_id)), responder_(std::move(responder)) {}

  void OnPromptTokens(std::vector<AnswerToken>) override {}  // no chunk has a place for them

  void OnPiece(AnswerPiece piece) override {
    size_t& offset = Begin(piece.choice);
    // A piece of end tokens only says nothing to this client.
    if (!piece.text.empty() || head_.logprobs) Write(SseEvent(PieceChunk(head_, piece, offset)));
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

 private:
  size_t& Begin(uint32_t choice) {
    if (offsets_.empty()) {
      responder_->StartStream(200, "text/event-stream",
                              {{kRequestIdHeader, request_id_}, {"cache-control", "no-cache"}});
    }
    const auto [offset, is_new] = offsets_.try_emplace(choice, 0);
    if (is_new && head_.is_chat) Write(SseEvent(FirstChunk(head_, choice)));
    return offset->second;
  }

  void Fail(const Status& error) {
    if (offsets_.empty()) return SendError(error, request_id_, *responder_);
    if (is_closed_) return responder_->Abort();  // nobody reads, or too slowly
    Write(SseEvent(ErrorJson(error)));
    responder_->Finish();
  }

  void Write(std::string event) {
    if (!responder_->Write(std::move(event))) is_closed_ = true;
  }

  const CompletionHead head_;
  const std::string request_id_;
  const std::shared_ptr<HttpResponder> responder_;
  std::map<uint32_t, size_t> offsets_;  // of the choices that have begun: see PieceChunk
  std::atomic<bool> is_closed_ = false;
};

}  // namespace

std::shared_ptr<AnswerSink> MakeWholeAnswerSink(CompletionHead head, std::string request_id,
                                                std::shared_ptr<HttpResponder> responder) {
  return std::make_shared<WholeAnswerSink>(std::move(head), std::move(request_id), std::move(responder));
}

std::shared_ptr<AnswerSink> MakeEventStreamSink(CompletionHead head, std::string request_id,
                                                std::shared_ptr<HttpResponder> responder) {
  return std::make_shared<EventStreamSink>(std::move(head), std::move(request_id), std::move(responder));
}

void SendError(const Status& error, const std::string& request_id, HttpResponder& responder) {
  const int status = HttpStatusOf(error);
  HttpHeaders headers = {{kRequestIdHeader, request_id}};
  if (status == 503) headers.emplace_back("retry-after", "1");
  responder.Send(status, ToJsonText(ErrorJson(error)), "application/json", headers);
}

}  // namespace terrace
