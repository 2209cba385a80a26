// The streaming calls of a stub worker: the same answer, a message a token at a set pace, as Worker.Execute
// and as Inference.Generate give it. A call keeps itself alive until gRPC is done with it; after it has begun
// one thing at a time happens to it, a write or a wait, so it needs no lock.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "base/grpc_status.h"
#include "grpcpp/support/server_callback.h"
#include "proto/terrace/v1/inference.pb.h"
#include "proto/terrace/v1/worker.pb.h"
#include "tests/bench/stub_parts.h"
#include "text/tokenizer.h"

namespace terrace {

struct StubPace {
  uint32_t tokens = 16;  // of answers that have no max_tokens
  Duration first_token = {}, inter_token = {};
  uint32_t burst_tokens = 1;    // so many come at once, with the first; then one after each inter_token
  Duration prefill_token = {};  // before the first token, for each of the prompt that is not cached
};

// What all calls of one stub share; outlives them.
struct StubState {
  StubPace pace;
  TokenId token = 0;  // of which every answer is made
  std::string text;   // what it stands for
  Alarms& alarms;
  Places places;
  StubCache cache;
};

template <typename Response>
class StubCall : public grpc::ServerWriteReactor<Response>,
                 public std::enable_shared_from_this<StubCall<Response>> {
 public:
  // `first_messages`: before that of the first token.
  StubCall(StubState& state, grpc::CallbackServerContext& context, uint32_t tokens, uint32_t first_messages)
      : state_(state),
        context_(context),
        tokens_(tokens == 0 ? state.pace.tokens : tokens),
        first_messages_(first_messages) {}

  grpc::ServerWriteReactor<Response>* Start(uint32_t prompt_tokens) {
    self_ = this->shared_from_this();
    if (!state_.places.Enter(this, prompt_tokens, [self = self_] { self->Begin(); })) {
      const Status error = WithReason(ResourceExhausted("the inbox is full"), "overloaded");
      SetReasonTrailer(context_, error);
      this->Finish(ToGrpcStatus(error));
    }
    return this;
  }

  void OnWriteDone(bool ok) override {
    if (is_finished_) return;
    if (!ok) is_cancelled_ = true;
    due_ += WaitBefore(step_);
    Await();
  }
  void OnCancel() override {
    is_cancelled_ = true;
    if (state_.places.LeaveQueue(this)) this->Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    const auto last = std::move(self_);  // may delete this
  }

 protected:
  // How many of the prompt's tokens are cached; asked once, when the sequence begins.
  virtual uint32_t Lookup() = 0;
  virtual uint32_t prompt_tokens() const = 0;
  // One of the messages: `token` counts from 0; below it are the first messages, and after the last one the
  // end.
  virtual void Fill(int64_t token, Response& response) const = 0;

  const StubState& state() const { return state_; }
  uint32_t tokens() const { return tokens_; }
  uint32_t cached_tokens() const { return cached_tokens_; }

 private:
  void Begin() {
    cached_tokens_ = Lookup();
    due_ = RealClock().Now() + WaitBefore(0);
    Await();
  }

  Duration WaitBefore(uint32_t step) const {
    if (step == first_messages_)
      return state_.pace.first_token + state_.pace.prefill_token * (prompt_tokens() - cached_tokens_);
    const uint32_t token = step - std::min(step, first_messages_);
    return token >= state_.pace.burst_tokens && token < tokens_ ? state_.pace.inter_token : Duration(0);
  }

  void Await() {
    if (due_ <= RealClock().Now()) return Write();
    state_.alarms.At(due_, [self = self_] { self->Write(); });
  }

  void Write() {
    const bool is_last = step_ == first_messages_ + tokens_;
    is_finished_ = is_last || is_cancelled_;
    if (is_finished_) state_.places.Leave();
    if (is_cancelled_) return this->Finish(grpc::Status::CANCELLED);
    response_.Clear();
    Fill(int64_t{step_++} - first_messages_, response_);
    if (is_last) return this->StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
    this->StartWrite(&response_);
  }

  StubState& state_;
  grpc::CallbackServerContext& context_;  // gRPC's, until OnDone
  const uint32_t tokens_, first_messages_;
  uint32_t cached_tokens_ = 0;
  uint32_t step_ = 0;  // messages written
  MonoTime due_;       // of the next one
  bool is_finished_ = false;
  std::atomic<bool> is_cancelled_ = false;
  Response response_;  // being written
  std::shared_ptr<StubCall> self_;
};

class StubExecute : public StubCall<v1::ExecuteEvent> {
 public:
  StubExecute(StubState& state, grpc::CallbackServerContext& context, const v1::ExecuteRequest& request)
      : StubCall(state, context, request.max_tokens(), /*first_messages=*/1),
        cache_(state.cache),
        request_(request) {}

 private:
  uint32_t Lookup() override {
    return cache_.Use(request_.cache_salt(), {request_.prompt_tokens().data(), prompt_tokens()});
  }
  uint32_t prompt_tokens() const override { return request_.prompt_tokens_size(); }

  void Fill(int64_t token, v1::ExecuteEvent& event) const override {
    if (token < 0) {
      event.mutable_started()->set_cached_tokens(cached_tokens());
    } else if (token < tokens()) {
      event.mutable_tokens()->set_first_index(static_cast<uint32_t>(token));
      v1::GeneratedToken& next = *event.mutable_tokens()->add_tokens();
      next.set_token(state().token);
      next.set_logprob(-0.5f);
    } else {
      v1::ExecuteFinished& finished = *event.mutable_finished();
      finished.set_reason(v1::FINISH_REASON_LENGTH);
      finished.set_prompt_tokens(prompt_tokens());
      finished.set_cached_tokens(cached_tokens());
      finished.set_generated_tokens(tokens());
    }
  }

  StubCache& cache_;
  const v1::ExecuteRequest& request_;  // gRPC's, until OnDone
};

// What a router in front of the stub would answer. The prompt's tokens are not counted: nobody tokenizes it.
class StubGenerate : public StubCall<v1::GenerateResponse> {
 public:
  StubGenerate(StubState& state, grpc::CallbackServerContext& context, const v1::GenerateRequest& request)
      : StubCall(state, context, request.max_tokens(), /*first_messages=*/0),
        request_id_(request.request_id().empty() ? "req-0123456789abcdef0123456789abcdef"
                                                 : request.request_id()) {}

 private:
  uint32_t Lookup() override { return 0; }
  uint32_t prompt_tokens() const override { return 0; }

  void Fill(int64_t token, v1::GenerateResponse& response) const override {
    response.set_request_id(request_id_);
    if (token < tokens()) {
      response.set_text(state().text);
      response.add_tokens()->set_id(state().token);
      return;
    }
    v1::GenerateFinished& finished = *response.mutable_finished();
    finished.set_reason(v1::FINISH_REASON_LENGTH);
    finished.mutable_usage()->set_completion_tokens(tokens());
    finished.set_tier("stub");
    v1::TierAttempt& attempt = *finished.add_attempts();
    attempt.set_tier("stub");
    attempt.set_replica("127.0.0.1:8101");
    attempt.mutable_usage()->set_completion_tokens(tokens());
    attempt.set_mean_logprob(-0.5);
    attempt.set_accepted(true);
  }

  const std::string request_id_;
};

}  // namespace terrace
