// One server-streaming call of a benchmark. Keeps itself alive until gRPC is done with it; everything but
// Cancel happens on gRPC's threads.
#pragma once

#include <memory>
#include <utility>

#include "base/clock.h"
#include "base/grpc_status.h"
#include "grpcpp/support/client_callback.h"
#include "tools/bench/bench_target.h"

namespace terrace {

template <typename Response>
class BenchStream : public grpc::ClientReadReactor<Response>,
                    public std::enable_shared_from_this<BenchStream<Response>> {
 public:
  BenchStream(const BenchRequest& request, std::shared_ptr<BenchObserver> observer)
      : observer_(std::move(observer)) {
    if (request.deadline.has_value())
      context_.set_deadline(WallTimeIn(*request.deadline - RealClock().Now()));
  }

  grpc::ClientContext& context() { return context_; }
  // After the stub has bound this reactor to its call.
  std::unique_ptr<BenchCall> Begin() {
    self_ = this->shared_from_this();
    auto call = std::make_unique<Call>(self_);
    this->StartRead(&response_);
    this->StartCall();
    return call;
  }

  void OnReadDone(bool is_ok) override {
    if (!is_ok) return;
    if (!OnResponse(response_)) context_.TryCancel();
    this->StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    const auto self = std::move(self_);
    observer_->OnEnd(End(FromGrpcStatus(status, context_)));
  }

 protected:
  virtual bool OnResponse(const Response& response) = 0;  // false: cancel
  virtual BenchEnd End(const Status& status) = 0;         // `status`: of the call
  BenchObserver& observer() { return *observer_; }

 private:
  class Call : public BenchCall {
   public:
    explicit Call(std::shared_ptr<BenchStream> stream) : stream_(std::move(stream)) {}
    void Cancel() override { stream_->context_.TryCancel(); }

   private:
    const std::shared_ptr<BenchStream> stream_;
  };

  const std::shared_ptr<BenchObserver> observer_;
  grpc::ClientContext context_;
  Response response_;
  std::shared_ptr<BenchStream> self_;  // until OnDone
};

}  // namespace terrace
