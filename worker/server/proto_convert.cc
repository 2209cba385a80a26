#include "worker/server/proto_convert.h"

#include <algorithm>

namespace terrace {
namespace {

constexpr int kMostDraftTokens = 1 << 17;  // more are not looked at: no context holds them

AcceptanceState FromProto(const v1::DraftAcceptance& in) {
  return {.right = in.right(), .trials = in.trials(), .prior_trials = in.prior_trials(), .wait = in.wait()};
}

void ToProto(const AcceptanceState& state, v1::DraftAcceptance& out) {
  out.set_right(static_cast<float>(state.right));
  out.set_trials(static_cast<float>(state.trials));
  out.set_prior_trials(static_cast<float>(state.prior_trials));
  out.set_wait(static_cast<float>(state.wait));
}

// It comes from another worker, perhaps of another version, and changes no token: what cannot be used is no
// reason to end a client's answer.
std::optional<DraftRecord> ToDraftRecord(const std::string& bytes) {
  v1::DraftRecord in;
  if (bytes.empty() || !in.ParseFromString(bytes)) return std::nullopt;
  DraftRecord out;  // holds the defaults
  if (in.has_drafts()) out.drafts = FromProto(in.drafts());
  if (in.has_branches()) out.branches = FromProto(in.branches());
  if (!out.drafts.is_possible() || !out.branches.is_possible()) return std::nullopt;
  return out;
}

}  // namespace

StatusOr<SamplingParams> ToSamplingParams(const v1::SamplingParams& in) {
  SamplingParams out;  // holds the defaults
  if (in.has_temperature()) out.temperature = in.temperature();
  if (in.has_top_k()) out.top_k = in.top_k();
  if (in.has_top_p()) out.top_p = in.top_p();
  if (in.has_min_p()) out.min_p = in.min_p();
  if (in.has_repetition_penalty()) out.repetition_penalty = in.repetition_penalty();
  if (in.has_presence_penalty()) out.presence_penalty = in.presence_penalty();
  if (in.has_frequency_penalty()) out.frequency_penalty = in.frequency_penalty();
  for (const auto& [token, bias] : in.logit_bias()) out.logit_bias.emplace_back(token, bias);
  std::ranges::sort(out.logit_bias);  // a map of protobuf has no order
  if (out.temperature > 0 && !in.has_seed()) {
    return WithReason(InvalidArgument("sampling.seed is absent; it must be set when temperature is above 0"),
                      "invalid_value");
  }
  out.seed = in.seed();
  return out;
}

StatusOr<SequenceSpec> ToSequenceSpec(const v1::ExecuteRequest& request) {
  SequenceSpec spec;
  spec.request_id = request.request_id();
  spec.prompt.assign(request.prompt_tokens().begin(), request.prompt_tokens().end());
  spec.resume.assign(request.resume_tokens().begin(), request.resume_tokens().end());
  const auto drafted = std::min(request.draft_tokens_size(), kMostDraftTokens);
  spec.draft.assign(request.draft_tokens().begin(), request.draft_tokens().begin() + drafted);
  spec.max_tokens = request.max_tokens();
  spec.stop_tokens.assign(request.stop_tokens().begin(), request.stop_tokens().end());
  spec.ignore_eos = request.ignore_eos();
  spec.top_logprobs = request.top_logprobs();
  spec.signals = request.signals();
  spec.score_prompt = request.score_prompt();
  spec.priority = request.priority();
  spec.cache_salt = request.cache_salt();
  if (request.speculation().has_max_tokens()) spec.speculation = request.speculation().max_tokens();
  spec.draft_record = ToDraftRecord(request.draft_record());
  const bool only_scores = request.score_prompt() && request.max_tokens() == 0;  // nothing is drawn
  if (!only_scores || request.has_sampling()) {
    ASSIGN_OR_RETURN(spec.sampling, ToSamplingParams(request.sampling()));
  }
  return spec;
}

std::optional<MonoTime> ToMonoDeadline(std::chrono::system_clock::time_point deadline,
                                       std::chrono::system_clock::time_point wall_now, MonoTime now) {
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  return now + (deadline - wall_now);
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void ToProto(const SamplingParams& params, v1::SamplingParams& out) {
  out.set_temperature(params.temperature);
  out.set_top_k(params.top_k);
  out.set_top_p(params.top_p);
  out.set_min_p(params.min_p);
  out.set_repetition_penalty(params.repetition_penalty);
  out.set_presence_penalty(params.presence_penalty);
  out.set_frequency_penalty(params.frequency_penalty);
  for (const auto& [token, bias] : params.logit_bias) (*out.mutable_logit_bias())[token] = bias;
  out.set_seed(params.seed);
}

void ToProto(const SampledToken& token, v1::GeneratedToken& out) {
  out.set_token(token.token);
  out.set_logprob(token.logprob);
  out.set_margin(token.margin);
  out.set_entropy(token.entropy);
  for (const TokenLogprob& alternative : token.top) {
    auto* top = out.add_top();
    top->set_token(alternative.token);
    top->set_logprob(alternative.logprob);
  }
}

void ToProto(const SpeculationStats& stats, v1::SpeculationTotals& out) {
  out.set_drafter(std::string(stats.drafter));
  out.mutable_proposed()->Assign(stats.proposed.begin(), stats.proposed.end());
  out.mutable_verified()->Assign(stats.verified.begin(), stats.verified.end());
  out.mutable_accepted()->Assign(stats.accepted.begin(), stats.accepted.end());
  out.set_branch_proposed(stats.branch_proposed);
  out.set_branch_verified(stats.branch_verified);
  out.set_branch_accepted(stats.branch_accepted);
  out.set_passes(stats.passes);
  out.set_failures(stats.failures);
  out.set_drafting_seconds(stats.drafting_seconds);
  out.set_saved_seconds(stats.saved_seconds);
}

void ToProto(const DraftRecord& record, v1::DraftRecord& out) {
  ToProto(record.drafts, *out.mutable_drafts());
  if (record.branches != AcceptanceState{}) ToProto(record.branches, *out.mutable_branches());
}

void ToProto(const SequenceResult& result, v1::ExecuteFinished& out) {
  out.set_reason(ToProto(result.reason));
  out.set_prompt_tokens(result.stats.prompt_tokens);
  out.set_cached_tokens(result.stats.cached_tokens);
  out.set_generated_tokens(result.stats.generated_tokens);
  out.set_queue_seconds(result.stats.queue_seconds);
  out.set_prefill_seconds(result.stats.prefill_seconds);
  out.set_decode_seconds(result.stats.decode_seconds);
  out.set_accepted_draft_tokens(result.stats.accepted_draft_tokens);
  out.set_speculated_tokens(result.stats.speculated_tokens);
  out.set_accepted_speculated_tokens(result.stats.accepted_speculated_tokens);
}

}  // namespace terrace
