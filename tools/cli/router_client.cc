#include "tools/cli/router_client.h"

#include <chrono>
#include <utility>

#include "base/grpc_status.h"

namespace terrace {
namespace {

constexpr std::chrono::seconds kListTimeout(10);

// These codes without a reason come from gRPC itself: no router answered at `address`.
Status Explain(const Status& status, const std::string& address) {
  if (status.code() == StatusCode::kUnauthenticated)
    return WithReason(Status(status.code(), Concat(Message(status), " (--api-key-file)")), Reason(status));
  const bool is_of_grpc =
      status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kUnimplemented;
  return is_of_grpc && Reason(status).empty() ? NoneAnswers("router", address, status) : status;
}

// One Generate stream; keeps itself alive until gRPC is done with it.
class Stream : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  static std::shared_ptr<Stream> Open(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                                      std::string address, const std::string& authorization,
                                      OnAnswerPiece on_piece) {
    const auto stream = std::make_shared<Stream>(request, std::move(address), std::move(on_piece));
    AddAuthorization(authorization, stream->context_);
    stream->self_ = stream;
    stub.async()->Generate(&stream->context_, &stream->request_, stream.get());
    stream->StartRead(&stream->response_);
    stream->StartCall();
    return stream;
  }
  Stream(const v1::GenerateRequest& request, std::string address, OnAnswerPiece on_piece)
      : request_(request), address_(std::move(address)), on_piece_(std::move(on_piece)) {}

  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool is_ok) override {
    if (!is_ok) return;
    if (response_.has_finished()) ++finished_;
    on_piece_(std::move(response_));
    response_.Clear();
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    const std::shared_ptr<Stream> self = std::move(self_);
    if (finished_ >= ChoicesOf(request_)) return;
    on_piece_(status.ok() ? Internal("the router ended the stream without its last message")
                          : Explain(FromGrpcStatus(status, context_), address_));
  }

 private:
  const v1::GenerateRequest request_;
  const std::string address_;
  const OnAnswerPiece on_piece_;
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
  uint32_t finished_ = 0;         // answers
  std::shared_ptr<Stream> self_;  // until OnDone
};

class Call : public AnswerCall {
 public:
  explicit Call(std::shared_ptr<Stream> stream) : stream_(std::move(stream)) {}
  void Cancel() override { stream_->Cancel(); }

 private:
  const std::shared_ptr<Stream> stream_;
};

}  // namespace

RouterClient::RouterClient(std::string address, const ChannelSecurity& security)
    : address_(std::move(address)),
      authorization_(security.authorization),
      stub_(v1::Inference::NewStub(MakeKeptChannel(address_, security))) {}

std::unique_ptr<AnswerCall> RouterClient::Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) {
  return std::make_unique<Call>(Stream::Open(*stub_, request, address_, authorization_, std::move(on_piece)));
}

StatusOr<v1::ListModelsResponse> RouterClient::ListModels() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kListTimeout);
  AddAuthorization(authorization_, context);
  v1::ListModelsResponse response;
  const grpc::Status status = stub_->ListModels(&context, {}, &response);
  if (!status.ok()) return Explain(FromGrpcStatus(status, context), address_);
  return response;
}

}  // namespace terrace
