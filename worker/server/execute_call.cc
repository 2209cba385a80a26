#include "worker/server/execute_call.h"

#include <utility>

#include "base/grpc_status.h"
#include "base/log.h"
#include "worker/server/proto_convert.h"

namespace terrace {
namespace {

constexpr size_t kEventLogprobs = 1 << 15;  // of one message: about 512 KiB

size_t CountLogprobs(std::span<const SampledToken> tokens) {
  size_t count = 0;
  for (const SampledToken& token : tokens) count += 1 + token.top.size();
  return count;
}

size_t CountLogprobs(const google::protobuf::RepeatedPtrField<v1::GeneratedToken>& tokens) {
  size_t count = 0;
  for (const auto& token : tokens) count += 1 + static_cast<size_t>(token.top_size());
  return count;
}

size_t CountLogprobs(const v1::ExecuteEvent& event) {
  return CountLogprobs(event.tokens().tokens()) + CountLogprobs(event.prompt_scores().scores());
}

}  // namespace

grpc::ServerWriteReactor<v1::ExecuteEvent>* ExecuteCall::Start(const Options& options, Engine& engine,
                                                               WorkerMetrics& metrics,
                                                               grpc::CallbackServerContext& context,
                                                               const v1::ExecuteRequest& request) {
  std::shared_ptr<ExecuteCall> call(new ExecuteCall(options, metrics, context, request.request_id()));
  call->self_ = call;
  auto spec = ToSequenceSpec(request);
  if (!spec.ok()) {
    call->Refuse(spec.status());
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
  buffered_logprobs_ += CountLogprobs(tokens);
  if (buffered_logprobs_ > options_.buffer_logprobs) {
    overflow_ = WithReason(ResourceExhausted("the client does not read: ", buffered_logprobs_,
                                             " log-probabilities wait, limit ", options_.buffer_logprobs),
                           "slow_reader");
    is_closed_ = true;
    return nullptr;
  }
  const size_t waiting = buffer_.size() - (is_writing_ ? 1 : 0);
  if (waiting > 0 && buffer_.back().event_case() == kind && CountLogprobs(buffer_.back()) < kEventLogprobs) {
    return &buffer_.back();
  }
  return &buffer_.emplace_back();
}

void ExecuteCall::OnFinish(const SequenceResult& result) {
  metrics_.OnFinished(result);
  if (IsLogged(LogLevel::kDebug)) {
    v1::ExecuteFinished finished;
    ToProto(result, finished);
    Log(LogLevel::kDebug, "sequence_finished",
        {{"request_id", request_id_},
         {"finish_reason", v1::FinishReason_Name(finished.reason())},
         {"error", Message(result.error)},
         {"prompt_tokens", finished.prompt_tokens()},
         {"output_tokens", finished.generated_tokens()},
         {"queue_ms", finished.queue_seconds() * 1e3},
         {"prefill_ms", finished.prefill_seconds() * 1e3},
         {"decode_ms", finished.decode_seconds() * 1e3}});
  }
  std::lock_guard lock(mutex_);
  if (!overflow_.ok()) return End(overflow_);
  if (!result.error.ok()) return End(result.error);
  ToProto(result, *buffer_.emplace_back().mutable_finished());
  End({});
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
    buffered_logprobs_ -= CountLogprobs(buffer_.front());
    StartWrite(&buffer_.front());
  } else if (end_.has_value()) {
    is_finished_ = true;
    SetReasonTrailer(context_, *end_);
    Finish(ToGrpcStatus(*end_));
  }
}

void ExecuteCall::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  is_writing_ = false;
  buffer_.pop_front();
  if (!ok) {
    is_closed_ = true;
    buffer_.clear();
  }
  Continue();
}

void ExecuteCall::OnDone() {
  // The last reference may be this one: nothing is touched after the local one ends.
  const std::shared_ptr<ExecuteCall> self = std::move(self_);
}

}  // namespace terrace
