// The answers of a stub worker: the same words (StubAnswer), a token at a time at a set pace, as sequences of
// a worker (StubSequence, behind the worker's own services) and as Inference.Generate gives them
// (StubGenerate). Each keeps itself alive until it is over; after it has begun one thing at a time happens to
// it, so it needs no lock.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/grpc_status.h"
#include "grpcpp/support/server_callback.h"
#include "proto/terrace/v1/inference.pb.h"
#include "tests/bench/stub_parts.h"
#include "text/tokenizer.h"
#include "worker/engine/sequence.h"

namespace terrace {

struct StubPace {
  uint32_t tokens = 16;  // of answers that have no max_tokens
  Duration first_token = {}, inter_token = {};
  uint32_t burst_tokens = 1;    // so many come at once, with the first; then one after each inter_token
  Duration prefill_token = {};  // before the first token, for each of the prompt that is not cached

  // Before token `index`, or before the end of an answer of so many. `uncached_tokens`: of the prompt.
  Duration Before(uint32_t index, uint32_t count, uint32_t uncached_tokens) const {
    if (index == 0) return first_token + prefill_token * uncached_tokens;
    return index >= burst_tokens && index < count ? inter_token : Duration(0);
  }
};

// What every answer says.
struct StubAnswer {
  std::vector<TokenId> tokens = {};     // again and again, unless it ends
  std::vector<std::string> texts = {};  // what each stands for
  bool ends = false;                    // once, whatever the request says of ends: the last token is one

  // Of an answer that may have `max_tokens`; 0: as many as it likes, or `usual` where it has no end.
  uint32_t Count(uint32_t max_tokens, uint32_t usual) const {
    const uint32_t limit = max_tokens != 0 ? max_tokens : ends ? UINT32_MAX : usual;
    return ends ? std::min(limit, static_cast<uint32_t>(tokens.size())) : limit;
  }
  FinishReason ReasonAfter(uint32_t count) const {
    return ends && count == tokens.size() ? FinishReason::kStop : FinishReason::kLength;
  }
};

// What all answers of one stub share; outlives them.
struct StubState {
  StubPace pace;
  StubAnswer answer;
  Alarms& alarms;
  Places places;
  StubCache cache;

  Status Full() const { return WithReason(ResourceExhausted("the inbox is full"), "overloaded"); }
};

// A sequence as an engine would run it; it does not pause.
class StubSequence : public std::enable_shared_from_this<StubSequence> {
 public:
  // As Engine::Submit.
  static Status Submit(StubState& state, SequenceSpec spec, std::shared_ptr<TokenSink> sink) {
    const auto sequence = std::make_shared<StubSequence>(state, std::move(spec), std::move(sink));
    const auto prompt_tokens = static_cast<uint32_t>(sequence->spec_.prompt.size());
    const bool has_place =
        state.places.Enter(sequence.get(), prompt_tokens, [sequence] { sequence->Begin(); });
    return has_place ? Status() : state.Full();
  }

  StubSequence(StubState& state, SequenceSpec spec, std::shared_ptr<TokenSink> sink)
      : state_(state), spec_(std::move(spec)), sink_(std::move(sink)) {
    tokens_ = state.answer.Count(spec_.max_tokens, state.pace.tokens);
    result_.stats.prompt_tokens = static_cast<uint32_t>(spec_.prompt.size());
    result_.stats.generated_tokens = tokens_;
    result_.reason = state.answer.ReasonAfter(tokens_);
  }

 private:
  void Begin() {
    due_ = RealClock().Now();
    state_.alarms.At(due_, [self = shared_from_this()] { self->Start(); });
  }

  void Start() {
    if (sink_->is_closed()) return End();
    result_.stats.cached_tokens = state_.cache.Use(spec_.cache_salt, spec_.prompt);
    spec_.prompt = std::vector<int32_t>();  // it may be long
    sink_->OnStarted(result_.stats.cached_tokens);
    Await();
  }

  void Await() {
    due_ += state_.pace.Before(step_, tokens_, result_.stats.prompt_tokens - result_.stats.cached_tokens);
    state_.alarms.At(due_, [self = shared_from_this()] { self->Step(); });
  }

  void Step() {
    if (step_ == tokens_ || sink_->is_closed()) return End();
    SampledToken token;
    token.token = state_.answer.tokens[step_ % state_.answer.tokens.size()];
    token.logprob = -0.5f;
    sink_->OnTokens(step_++, {&token, 1});
    Await();
  }

  void End() {
    if (step_ < tokens_) {
      result_.reason = FinishReason::kCancelled;
      result_.error = Cancelled("nobody reads");
    }
    state_.places.Leave();
    sink_->OnFinish(result_);
  }

  StubState& state_;
  SequenceSpec spec_;
  const std::shared_ptr<TokenSink> sink_;
  uint32_t tokens_ = 0;
  uint32_t step_ = 0;  // tokens given
  MonoTime due_;       // of the next one
  SequenceResult result_;
};

// What a router in front of the stub would answer. The prompt's tokens are not counted: nobody tokenizes it.
class StubGenerate : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                     public std::enable_shared_from_this<StubGenerate> {
 public:
  StubGenerate(StubState& state, grpc::CallbackServerContext& context, const v1::GenerateRequest& request)
      : state_(state),
        context_(context),
        tokens_(state.answer.Count(request.max_tokens(), state.pace.tokens)),
        request_id_(request.request_id().empty() ? "req-0123456789abcdef0123456789abcdef"
                                                 : request.request_id()) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Start() {
    self_ = shared_from_this();
    if (!state_.places.Enter(this, /*prompt_tokens=*/0, [self = self_] { self->Begin(); })) {
      const Status error = state_.Full();
      SetReasonTrailer(context_, error);
      Finish(ToGrpcStatus(error));
    }
    return this;
  }

  void OnWriteDone(bool ok) override {
    if (is_finished_) return;
    if (!ok) is_cancelled_ = true;
    Await();
  }
  void OnCancel() override {
    is_cancelled_ = true;
    if (state_.places.LeaveQueue(this)) Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    const auto last = std::move(self_);  // may delete this
  }

 private:
  void Begin() {
    due_ = RealClock().Now();
    Await();
  }

  void Await() {
    due_ += state_.pace.Before(step_, tokens_, /*uncached_tokens=*/0);
    if (due_ <= RealClock().Now()) return Write();
    state_.alarms.At(due_, [self = self_] { self->Write(); });
  }

  void Write() {
    const bool is_last = step_ == tokens_;
    is_finished_ = is_last || is_cancelled_;
    if (is_finished_) state_.places.Leave();
    if (is_cancelled_) return Finish(grpc::Status::CANCELLED);
    response_.Clear();
    Fill(step_++, response_);
    if (is_last) return StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
    StartWrite(&response_);
  }

  void Fill(uint32_t token, v1::GenerateResponse& response) const {
    response.set_request_id(request_id_);
    if (token < tokens_) {
      const size_t index = token % state_.answer.tokens.size();
      response.set_text(state_.answer.texts[index]);
      response.add_tokens()->set_id(state_.answer.tokens[index]);
      return;
    }
    v1::GenerateFinished& finished = *response.mutable_finished();
    finished.set_reason(state_.answer.ReasonAfter(tokens_) == FinishReason::kStop ? v1::FINISH_REASON_STOP
                                                                                  : v1::FINISH_REASON_LENGTH);
    finished.mutable_usage()->set_completion_tokens(tokens_);
    finished.set_tier("stub");
    v1::TierAttempt& attempt = *finished.add_attempts();
    attempt.set_tier("stub");
    attempt.set_replica("127.0.0.1:8101");
    attempt.mutable_usage()->set_completion_tokens(tokens_);
    attempt.set_mean_logprob(-0.5);
    attempt.set_accepted(true);
  }

  StubState& state_;
  grpc::CallbackServerContext& context_;  // gRPC's, until OnDone
  const uint32_t tokens_;
  const std::string request_id_;
  uint32_t step_ = 0;  // messages written
  MonoTime due_;       // of the next one
  bool is_finished_ = false;
  std::atomic<bool> is_cancelled_ = false;
  v1::GenerateResponse response_;  // being written
  std::shared_ptr<StubGenerate> self_;
};

}  // namespace terrace
