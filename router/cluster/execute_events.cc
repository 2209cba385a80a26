#include "router/cluster/execute_events.h"

#include <utility>
#include <vector>

namespace terrace {
namespace {

using GeneratedTokens = google::protobuf::RepeatedPtrField<v1::GeneratedToken>;

std::vector<WorkerToken> FromProto(const GeneratedTokens& tokens) {
  std::vector<WorkerToken> out;
  out.reserve(tokens.size());
  for (const v1::GeneratedToken& token : tokens) {
    WorkerToken& next = out.emplace_back(WorkerToken{.token = token.token(),
                                                     .logprob = token.logprob(),
                                                     .margin = token.margin(),
                                                     .entropy = token.entropy()});
    for (const v1::TokenLogprob& top : token.top()) next.top.push_back({top.token(), top.logprob()});
  }
  return out;
}

constexpr size_t kMostDraftRecordBytes = 256;

size_t Count(const GeneratedTokens& tokens) {
  size_t count = 0;
  for (const v1::GeneratedToken& token : tokens) count += 1 + static_cast<size_t>(token.top_size());
  return count;
}

}  // namespace

Status ProtocolError(const std::string& what) {
  return WithReason(Internal("the worker broke the protocol: ", what), "worker_protocol");
}

v1::ExecuteRequest ToProto(const ExecuteSpec& spec) {
  v1::ExecuteRequest out;
  out.set_request_id(spec.request_id);
  out.set_instance(spec.instance);
  out.mutable_prompt_tokens()->Add(spec.prompt->begin(), spec.prompt->end());
  out.mutable_resume_tokens()->Add(spec.resume.begin(), spec.resume.end());
  out.mutable_draft_tokens()->Add(spec.draft.begin(), spec.draft.end());
  const Sampling& sampling = spec.sampling;
  v1::SamplingParams& params = *out.mutable_sampling();
  params.set_temperature(sampling.temperature);
  params.set_top_k(sampling.top_k);
  params.set_top_p(sampling.top_p);
  params.set_min_p(sampling.min_p);
  params.set_repetition_penalty(sampling.repetition_penalty);
  params.set_presence_penalty(sampling.presence_penalty);
  params.set_frequency_penalty(sampling.frequency_penalty);
  for (const auto& [token, bias] : sampling.logit_bias) (*params.mutable_logit_bias())[token] = bias;
  if (sampling.seed.has_value()) params.set_seed(*sampling.seed);
  out.set_max_tokens(spec.max_tokens);
  out.mutable_stop_tokens()->Add(spec.stop_tokens.begin(), spec.stop_tokens.end());
  out.set_ignore_eos(spec.ignore_eos);
  out.set_top_logprobs(spec.top_logprobs);
  out.set_score_prompt(spec.score_prompt);
  out.set_signals(spec.signals);
  if (spec.speculation_max_tokens.has_value())
    out.mutable_speculation()->set_max_tokens(*spec.speculation_max_tokens);
  out.set_draft_record(spec.draft_record);
  out.set_priority(spec.priority);
  out.set_cache_salt(spec.cache_salt);
  return out;
}

size_t CountLogprobs(const v1::ExecuteEvent& event) {
  if (event.has_tokens()) return Count(event.tokens().tokens());
  return event.has_prompt_scores() ? Count(event.prompt_scores().scores()) : 0;
}

std::optional<StatusOr<ExecuteResult>> ExecuteOrder::Take(const v1::ExecuteEvent& event,
                                                          ExecuteEvents& events) {
  Status taken;
  switch (event.event_case()) {
    case v1::ExecuteEvent::kTokens:
      taken = TakeTokens(event.tokens(), events);
      break;
    case v1::ExecuteEvent::kPromptScores:
      taken = TakeScores(event.prompt_scores(), events);
      break;
    case v1::ExecuteEvent::kStarted:
      taken = TakeStarted(event.started(), events);
      break;
    case v1::ExecuteEvent::kFinished:
      return TakeFinished(event.finished());
    case v1::ExecuteEvent::EVENT_NOT_SET:
      break;  // of a newer worker
  }
  if (taken.ok()) return std::nullopt;
  return taken;
}

Status ExecuteOrder::TakeTokens(const v1::TokenBatch& batch, ExecuteEvents& events) {
  if (batch.first_index() != next_token_) return ProtocolError("tokens lost or repeated");
  if (const size_t bytes = batch.draft_record().size(); bytes > kMostDraftRecordBytes)
    return ProtocolError(Concat("a draft_record of ", bytes, " bytes, limit ", kMostDraftRecordBytes));
  next_token_ += static_cast<uint64_t>(batch.tokens_size());
  if (!batch.draft_record().empty()) events.OnDraftRecord(batch.draft_record());
  events.OnTokens(FromProto(batch.tokens()));
  return {};
}

Status ExecuteOrder::TakeScores(const v1::PromptScores& batch, ExecuteEvents& events) {
  if (batch.first_index() != next_score_) return ProtocolError("scores lost or repeated");
  next_score_ += static_cast<uint64_t>(batch.scores_size());
  if (next_score_ > prompt_tokens_) return ProtocolError("more scores than prompt tokens");
  events.OnPromptScores(FromProto(batch.scores()));
  return {};
}

Status ExecuteOrder::TakeStarted(const v1::ExecuteStarted& started, ExecuteEvents& events) {
  if (std::exchange(is_started_, true)) return ProtocolError("started twice");
  if (started.cached_tokens() > prompt_tokens_) return ProtocolError("more cached tokens than prompt tokens");
  events.OnStarted(started.cached_tokens());
  return {};
}

StatusOr<ExecuteResult> ExecuteOrder::TakeFinished(const v1::ExecuteFinished& finished) const {
  if (finished.reason() != v1::FINISH_REASON_STOP && finished.reason() != v1::FINISH_REASON_LENGTH) {
    return ProtocolError(Concat("finish reason ", static_cast<int>(finished.reason())));
  }
  if (finished.generated_tokens() != next_token_) return ProtocolError("tokens lost before the end");
  if (finished.accepted_speculated_tokens() > finished.speculated_tokens()) {
    return ProtocolError(Concat(finished.accepted_speculated_tokens(), " accepted tokens of ",
                                finished.speculated_tokens(), " drafted ones"));
  }
  ExecuteResult result;
  result.end = finished.reason() == v1::FINISH_REASON_STOP ? AnswerEnd::kStop : AnswerEnd::kLength;
  result.usage = {.prompt_tokens = finished.prompt_tokens(),
                  .cached_tokens = finished.cached_tokens(),
                  .completion_tokens = finished.generated_tokens(),
                  .speculated_tokens = finished.speculated_tokens(),
                  .accepted_speculated_tokens = finished.accepted_speculated_tokens()};
  result.queue_seconds = finished.queue_seconds();
  result.prefill_seconds = finished.prefill_seconds();
  result.decode_seconds = finished.decode_seconds();
  return result;
}

}  // namespace terrace
