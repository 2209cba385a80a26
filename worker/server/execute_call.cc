#include "worker/server/execute_call.h"

#include <utility>

#include "base/failpoint.h"
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

Status CheckInstance(const std::string& meant, const std::string& here) {
  if (meant.empty() || meant == here) return {};
  return WithReason(Unavailable("this worker was started after the one that was described: ", here),
                    "wrong_instance");
}

ExecuteCall::ExecuteCall(const Options& options, const ExecuteHost& host, std::string_view traceparent)
    : options_(options), host_(host), traceparent_(traceparent.substr(0, kMaxTraceParentBytes)) {}

bool ExecuteCall::Begin(const v1::ExecuteRequest& request, std::optional<MonoTime> deadline) {
  request_id_ = request.request_id();
  if (const Status meant = CheckInstance(request.instance(), host_.instance); !meant.ok()) {
    End(meant);
    return false;
  }
  const Status submitted = Submit(request, deadline);
  if (!submitted.ok()) Refuse(submitted);
  return submitted.ok();
}

Status ExecuteCall::Submit(const v1::ExecuteRequest& request, std::optional<MonoTime> deadline) {
  ASSIGN_OR_RETURN(SequenceSpec spec, ToSequenceSpec(request));
  RETURN_IF_ERROR(TERRACE_FAILPOINT_STATUS("worker.execute"));
  spec.deadline = deadline;
  return host_.submit(std::move(spec), shared_from_this());
}

void ExecuteCall::Refuse(const Status& error) {
  host_.metrics.OnRefused();
  End(error);
}

void ExecuteCall::Close() {
  is_closed_ = true;  // and so nothing comes any more
  std::lock_guard lock(mutex_);
  buffer_.clear();
  buffered_logprobs_ = 0;
}

std::optional<ExecuteCall::Waiting> ExecuteCall::Take(bool has_credit) {
  std::optional<Waiting> taken;
  {
    std::lock_guard lock(mutex_);
    if (buffer_.empty() || (!has_credit && buffer_.front().logprobs > 0)) return taken;
    taken = std::move(buffer_.front());
    buffer_.pop_front();
    buffered_logprobs_ -= taken->logprobs;
    if (!is_full_ || buffered_logprobs_ > options_.buffer_logprobs / 2) return taken;
    is_full_ = false;
  }
  host_.wake();
  return taken;
}

std::optional<Status> ExecuteCall::TakeEnd() {
  std::lock_guard lock(mutex_);
  if (!buffer_.empty()) return std::nullopt;
  return std::exchange(end_, std::nullopt);
}

void ExecuteCall::OnStarted(uint32_t cached_tokens) {
  {
    std::lock_guard lock(mutex_);
    if (is_closed_) return;
    buffer_.emplace_back().event.mutable_started()->set_cached_tokens(cached_tokens);
  }
  OnReady();
}

void ExecuteCall::OnDraftRecord(const DraftRecord& record) {
  std::lock_guard lock(mutex_);
  draft_record_ = record;
}

void ExecuteCall::OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) {
  {
    std::lock_guard lock(mutex_);
    v1::ExecuteEvent* event = Reserve(tokens, v1::ExecuteEvent::kTokens);
    if (event == nullptr) return;
    v1::TokenBatch& batch = *event->mutable_tokens();
    if (batch.tokens().empty()) batch.set_first_index(first_index);
    for (const SampledToken& token : tokens) ToProto(token, *batch.add_tokens());
    if (draft_record_.has_value()) {
      v1::DraftRecord record;
      ToProto(*std::exchange(draft_record_, std::nullopt), record);
      record.SerializeToString(batch.mutable_draft_record());
    }
  }
  OnReady();
}

void ExecuteCall::OnPromptScores(uint32_t first_index, std::span<const SampledToken> scores) {
  {
    std::lock_guard lock(mutex_);
    v1::ExecuteEvent* event = Reserve(scores, v1::ExecuteEvent::kPromptScores);
    if (event == nullptr) return;
    v1::PromptScores& batch = *event->mutable_prompt_scores();
    if (batch.scores().empty()) batch.set_first_index(first_index);
    for (const SampledToken& score : scores) ToProto(score, *batch.add_scores());
  }
  OnReady();
}

// The event that `tokens` go into: the last one waiting when it is of that kind and small, else a new one.
// Null when nobody reads. With mutex_ held.
v1::ExecuteEvent* ExecuteCall::Reserve(std::span<const SampledToken> tokens,
                                       v1::ExecuteEvent::EventCase kind) {
  if (is_closed_) return nullptr;
  const bool has_open_event = !buffer_.empty() && buffer_.back().event.event_case() == kind &&
                              buffer_.back().logprobs < options_.buffer_logprobs / kEventsPerBuffer;
  Waiting& last = has_open_event ? buffer_.back() : buffer_.emplace_back();
  const size_t logprobs = CountLogprobs(tokens);
  last.logprobs += logprobs;
  buffered_logprobs_ += logprobs;
  if (buffered_logprobs_ > options_.buffer_logprobs) is_full_ = true;
  return &last.event;
}

void ExecuteCall::OnFinish(const SequenceResult& result) {
  host_.metrics.OnFinished(result);
  if (IsLogged(LogLevel::kDebug)) LogFinished(result);
  if (result.error.ok()) {
    std::lock_guard lock(mutex_);
    ToProto(result, *buffer_.emplace_back().event.mutable_finished());
  }
  End(result.error);
}

void ExecuteCall::LogFinished(const SequenceResult& result) const {
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

void ExecuteCall::End(Status status) {
  {
    std::lock_guard lock(mutex_);
    end_ = std::move(status);
  }
  OnReady();
}

}  // namespace terrace
