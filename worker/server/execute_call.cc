#include "worker/server/execute_call.h"

#include <algorithm>
#include <utility>

#include "base/failpoint.h"
#include "base/grpc_status.h"
#include "base/log.h"
#include "worker/server/proto_convert.h"

namespace terrace {
namespace {

constexpr size_t kMaxTraceParentBytes = 64;
constexpr size_t kEventsPerBuffer = 8;  // at least, when full: what is read makes room bit by bit

size_t CountLogprobs(std::span<const SampledToken> tokens) {
  size_t count = 0;
  for (const SampledToken& token : tokens) count += 1 + token.top.size();
  return count;
}

}  // namespace

grpc::ServerWriteReactor<v1::ExecuteEvent>* ExecuteCall::Start(const Options& options, Engine& engine,
                                                               WorkerMetrics& metrics,
                                                               grpc::CallbackServerContext& context,
                                                               const v1::ExecuteRequest& request) {
  std::shared_ptr<ExecuteCall> call(new ExecuteCall(options, engine, metrics, context, request.request_id()));
  const auto trace = context.client_metadata().find("traceparent");
  if (trace != context.client_metadata().end()) {
    call->traceparent_.assign(trace->second.data(), std::min(trace->second.size(), kMaxTraceParentBytes));
  }
  call->self_ = call;
  auto spec = ToSequenceSpec(request);
  if (!spec.ok()) {
    call->Refuse(spec.status());
    return call.get();
  }
  if (const Status failed = TERRACE_FAILPOINT_STATUS("worker.execute"); !failed.ok()) {
    call->Refuse(failed);
    return call.get();
  }
  spec->deadline = ToMonoDeadline(context.deadline(), std::chrono::system_clock::now(), RealClock().Now());
  if (const Status submitted = engine.Submit(*std::move(spec), call); !submitted.ok())
    call->Refuse(submitted);
  return call.get();
}

void ExecuteCall::Refuse(const Status& error) {
  metrics_.OnRefused();
  std::lock_guard lock(mutex_);
  End(error);
}

void ExecuteCall::OnStarted(uint32_t cached_tokens) {
  std::lock_guard lock(mutex_);
  if (is_closed_) return;
  buffer_.emplace_back().event.mutable_started()->set_cached_tokens(cached_tokens);
  Continue();
}

void ExecuteCall::OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) {
  std::lock_guard lock(mutex_);
  v1::ExecuteEvent* event = Reserve(tokens, v1::ExecuteEvent::kTokens);
  if (event == nullptr) return;
  v1::TokenBatch& batch = *event->mutable_tokens();
  if (batch.tokens().empty()) batch.set_first_index(first_index);
  for (const SampledToken& token : tokens) ToProto(token, *batch.add_tokens());
  Continue();
}

void ExecuteCall::OnPromptScores(uint32_t first_index, std::span<const SampledToken> scores) {
  std::lock_guard lock(mutex_);
  v1::ExecuteEvent* event = Reserve(scores, v1::ExecuteEvent::kPromptScores);
  if (event == nullptr) return;
  v1::PromptScores& batch = *event->mutable_prompt_scores();
  if (batch.scores().empty()) batch.set_first_index(first_index);
  for (const SampledToken& score : scores) ToProto(score, *batch.add_scores());
  Continue();
}

// The event that `tokens` go into: the last one waiting when it is of that kind and small, else a new one.
// Null when nobody reads.
v1::ExecuteEvent* ExecuteCall::Reserve(std::span<const SampledToken> tokens,
                                       v1::ExecuteEvent::EventCase kind) {
  if (is_closed_) return nullptr;
  const bool has_open_event = buffer_.size() > (is_writing_ ? 1u : 0u) &&
                              buffer_.back().event.event_case() == kind &&
                              buffer_.back().logprobs < options_.buffer_logprobs / kEventsPerBuffer;
  Waiting& last = has_open_event ? buffer_.back() : buffer_.emplace_back();
  const size_t logprobs = CountLogprobs(tokens);
  last.logprobs += logprobs;
  buffered_logprobs_ += logprobs;
  if (buffered_logprobs_ > options_.buffer_logprobs) is_full_ = true;
  return &last.event;
}

void ExecuteCall::OnFinish(const SequenceResult& result) {
  metrics_.OnFinished(result);
  if (IsLogged(LogLevel::kDebug)) {
    v1::ExecuteFinished finished;
    ToProto(result, finished);
    Log(LogLevel::kDebug, "sequence_finished",
        {{"request_id", request_id_},
         {"traceparent", traceparent_},
         {"finish_reason", v1::FinishReason_Name(finished.reason())},
         {"error", Message(result.error)},
         {"prompt_tokens", finished.prompt_tokens()},
         {"cached_tokens", finished.cached_tokens()},
         {"output_tokens", finished.generated_tokens()},
         {"accepted_draft_tokens", finished.accepted_draft_tokens()},
         {"speculated_tokens", finished.speculated_tokens()},
         {"accepted_speculated_tokens", finished.accepted_speculated_tokens()},
         {"preemptions", result.stats.preemptions},
         {"queue_ms", finished.queue_seconds() * 1e3},
         {"prefill_ms", finished.prefill_seconds() * 1e3},
         {"decode_ms", finished.decode_seconds() * 1e3}});
  }
  std::lock_guard lock(mutex_);
  if (!result.error.ok()) return End(result.error);
  ToProto(result, *buffer_.emplace_back().event.mutable_finished());
  End({});
}

// Nobody reads any more.
void ExecuteCall::Close() {
  is_closed_ = true;
  engine_.Wake();  // it may have nothing to do but what is paused
}

void ExecuteCall::End(Status status) {
  if (!status.ok() && is_closed_) {  // nobody waits for the rest
    while (buffer_.size() > (is_writing_ ? 1u : 0u)) buffer_.pop_back();
  }
  end_ = std::move(status);
  Continue();
}

// Writes the next event, or says the end after the last one.
void ExecuteCall::Continue() {
  if (is_writing_ || is_finished_) return;
  if (!buffer_.empty()) {
    is_writing_ = true;
    StartWrite(&buffer_.front().event);
  } else if (end_.has_value()) {
    is_finished_ = true;
    SetReasonTrailer(context_, *end_);
    Finish(ToGrpcStatus(*end_));
  }
}

void ExecuteCall::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  is_writing_ = false;
  buffered_logprobs_ -= buffer_.front().logprobs;
  buffer_.pop_front();
  if (!ok) {
    buffer_.clear();
    Close();
  } else if (is_full_ && buffered_logprobs_ <= options_.buffer_logprobs / 2) {
    is_full_ = false;
    engine_.Wake();
  }
  Continue();
}

void ExecuteCall::OnDone() {
  // The last reference may be this one: nothing is touched after the local one ends.
  const std::shared_ptr<ExecuteCall> self = std::move(self_);
}

}  // namespace terrace
