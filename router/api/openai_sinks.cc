#include "router/api/openai_sinks.h"

#include <atomic>
#include <iterator>
#include <utility>

namespace terrace {
namespace {

constexpr char kRequestIdHeader[] = "x-request-id";

class WholeAnswerSink : public AnswerSink {
 public:
  WholeAnswerSink(CompletionHead head, std::string request_id, std::shared_ptr<HttpResponder> responder)
      : head_(std::move(head)), request_id_(std::move(request_id)), responder_(std::move(responder)) {}

  void OnPiece(AnswerPiece piece) override {
    answer_.text += piece.text;
    if (!head_.logprobs) return;
    answer_.tokens.insert(answer_.tokens.end(), std::make_move_iterator(piece.tokens.begin()),
                          std::make_move_iterator(piece.tokens.end()));
  }

  void OnFinish(StatusOr<AnswerSummary> summary) override {
    if (!summary.ok()) return SendError(summary.status(), request_id_, *responder_);
    responder_->Send(200, ToJsonText(CompletionJson(head_, answer_, *summary)), "application/json",
                     {{kRequestIdHeader, request_id_}});
  }

  bool is_closed() const override { return false; }  // the responder's OnClose cancels the call

 private:
  const CompletionHead head_;
  const std::string request_id_;
  const std::shared_ptr<HttpResponder> responder_;
  AnswerPiece answer_;
};

class EventStreamSink : public AnswerSink {
 public:
  EventStreamSink(CompletionHead head, std::string request_id, std::shared_ptr<HttpResponder> responder)
      : head_(std::move(head)), request_id_(std::move(request_id)), responder_(std::move(responder)) {}

  void OnPiece(AnswerPiece piece) override {
    Begin();
    // A piece of end tokens only says nothing to this client.
    if (!piece.text.empty() || head_.logprobs) Write(SseEvent(PieceChunk(head_, piece)));
  }

  void OnFinish(StatusOr<AnswerSummary> summary) override {
    if (!summary.ok()) return Fail(summary.status());
    Begin();
    Write(SseEvent(LastChunk(head_, *summary)));
    if (head_.include_usage) Write(SseEvent(UsageChunk(head_, *summary)));
    Write("data: [DONE]\n\n");
    responder_->Finish();
  }

  bool is_closed() const override { return is_closed_; }

 private:
  void Begin() {
    if (std::exchange(is_begun_, true)) return;
    responder_->StartStream(200, "text/event-stream",
                            {{kRequestIdHeader, request_id_}, {"cache-control", "no-cache"}});
    Write(SseEvent(FirstChunk(head_)));
  }

  void Fail(const Status& error) {
    if (!is_begun_) return SendError(error, request_id_, *responder_);
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
  bool is_begun_ = false;
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
