#include "router/dispatch/recorder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/json.h"
#include "base/log.h"
#include "router/request/http_status.h"

namespace terrace {
namespace {

using Labels = std::vector<std::string>;

// Reasons of refusals that say something about the cluster, or a tenant's or a connection's limits.
constexpr const char* kRejections[] = {"rate_limit_exceeded", "overloaded", "no_capacity",
                                       "model_not_certified", "draining",   kTooManyResets};

double Millis(double seconds) { return std::round(seconds * 1e6) / 1e3; }  // to the microsecond

MetricRegistry::Counter& RetryCounter(MetricRegistry& metrics, const std::string& tier,
                                      std::string_view reason) {
  return metrics.GetCounter("terrace_router_retries_total", Labels{tier, std::string(reason)});
}

MetricRegistry::Counter& ResumeCounter(MetricRegistry& metrics, const std::string& tier,
                                       std::string_view reason) {
  return metrics.GetCounter("terrace_router_resumes_total", Labels{tier, std::string(reason)});
}

MetricRegistry::Counter& PoisonCounter(MetricRegistry& metrics, const std::string& tier,
                                       Recorder::PoisonEvent event) {
  const bool is_refused = event == Recorder::PoisonEvent::kRefused;
  return metrics.GetCounter("terrace_poison_requests_total",
                            Labels{tier, is_refused ? "refused" : "quarantined"});
}

MetricRegistry::Counter& ShadowCounter(MetricRegistry& metrics, const std::string& policy,
                                       Recorder::ShadowResult result) {
  constexpr const char* kResults[] = {"agreed", "disagreed", "failed", "dropped"};
  return metrics.GetCounter("terrace_policy_shadow_requests_total",
                            Labels{policy, kResults[static_cast<size_t>(result)]});
}

MetricRegistry::Counter& RecordCounter(MetricRegistry& metrics, const std::string& policy,
                                       Recorder::RecordResult result) {
  constexpr const char* kResults[] = {"written", "dropped", "failed", "unwritten", "refused"};
  return metrics.GetCounter("terrace_policy_shadow_records_total",
                            Labels{policy, kResults[static_cast<size_t>(result)]});
}

MetricRegistry::Histogram& AgreementHistogram(MetricRegistry& metrics, const std::string& policy) {
  return metrics.GetHistogram("terrace_policy_answer_agreement_ratio", Labels{policy});
}

// What an attempt's answer was judged by.
Json SignalsJson(const AnswerAttempt& attempt) {
  return {{"mean_logprob", attempt.mean_logprob},
          {"min_logprob", attempt.min_logprob},
          {"mean_margin", OrNull(attempt.mean_margin)},
          {"mean_entropy", OrNull(attempt.mean_entropy)},
          {"score", OrNull(attempt.score)},
          {"threshold", OrNull(attempt.threshold)},
          {"accepted", attempt.accepted}};
}

// How an answer ended; "" of what is none, or was cut off.
std::string_view FinishReason(const RequestRecord& record) {
  const bool is_answer = record.api == ApiKind::kOpenAiChat || record.api == ApiKind::kOpenAiCompletion ||
                         record.api == ApiKind::kGenerate;
  return is_answer && record.status.ok() ? AnswerEndName(record.summary.end) : "";
}

// That of its outcome: a client whose stream had begun has seen 200.
Json HttpStatusJson(const RequestRecord& record) {
  if (!record.is_http) return {};
  if (record.http_status != 0) return Json(record.http_status);
  return Json(record.status.ok() ? 200 : HttpStatusOf(record.status));
}

// Attempts at an answer on the tier of the one before.
size_t RetriesOf(const std::vector<AnswerAttempt>& attempts) {
  size_t retries = 0;
  for (size_t i = 1; i < attempts.size(); ++i) {
    const AnswerAttempt &before = attempts[i - 1], &attempt = attempts[i];
    retries += attempt.choice == before.choice && attempt.tier == before.tier ? 1 : 0;
  }
  return retries;
}

// One of kRejections, or null.
const char* RejectionOf(const Status& status) {
  if (status.ok()) return nullptr;
  const auto found = std::ranges::find(kRejections, Reason(status));
  return found == std::end(kRejections) ? nullptr : *found;
}

void LogRequest(const RequestRecord& record) {
  if (!IsLogged(LogLevel::kInfo)) return;  // before anything is made for it
  const AnswerSummary& summary = record.summary;
  const bool ok = record.status.ok();
  Json attempts = Json::array(), signals = Json::array();
  for (const AnswerAttempt& attempt : summary.attempts) {
    attempts.push_back(attempt.tier + "@" + attempt.replica);
    signals.push_back(SignalsJson(attempt));
  }
  const std::string reason = Reason(record.status), finish_reason(FinishReason(record));
  Log(LogLevel::kInfo, "request",
      {{"request_id", record.request_id},
       {"trace_id", record.trace.has_value() ? Json(record.trace->TraceIdHex()) : Json()},
       {"span_id", record.trace.has_value() ? Json(record.trace->SpanIdHex()) : Json()},
       {"tenant", record.tenant == nullptr ? Json() : Json(record.tenant->name)},
       {"peer", record.peer},
       {"api", std::string(ApiName(record.api))},
       {"model", record.model},
       {"tier", summary.tier},
       {"tier_reason", summary.reason.empty() ? Json() : Json(summary.reason)},
       {"attempts", std::move(attempts)},
       {"attempt_signals", std::move(signals)},
       {"retries", RetriesOf(summary.attempts)},
       {"outcome", std::string(OutcomeOf(record.status))},
       {"http_status", HttpStatusJson(record)},
       {"finish_reason", finish_reason.empty() ? Json() : Json(finish_reason)},
       {"code", ok ? Json() : Json(reason.empty() ? absl::StatusCodeToString(record.status.code()) : reason)},
       {"answers", record.answers},
       {"prompt_tokens", summary.usage.prompt_tokens},
       {"cached_tokens", summary.usage.cached_tokens},
       {"completion_tokens", summary.usage.completion_tokens},
       {"queue_ms", record.queue_seconds < 0 ? Json() : Json(Millis(record.queue_seconds))},
       {"ttft_ms", record.has_first_token ? Json(Millis(summary.time_to_first_token_seconds)) : Json()},
       {"duration_ms", Millis(summary.total_seconds)},
       {"price_usd", ShownUsd(summary.price_usd)}});
}

}  // namespace

std::string_view OutcomeOf(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return "ok";
    case StatusCode::kInvalidArgument:
    case StatusCode::kNotFound:
    case StatusCode::kFailedPrecondition:
    case StatusCode::kUnimplemented:
    case StatusCode::kUnauthenticated:
    case StatusCode::kPermissionDenied:
      return "client_error";
    case StatusCode::kCancelled:
      return "cancelled";
    case StatusCode::kDeadlineExceeded:
      return "deadline";
    case StatusCode::kResourceExhausted:
      return Reason(status) == "rate_limit_exceeded" || Reason(status) == kTooManyResets ? "limited"
                                                                                         : "overloaded";
    case StatusCode::kUnavailable:
      return "unavailable";
    default:
      return "error";
  }
}

Recorder::Recorder(MetricRegistry& metrics, std::span<const std::string> tiers,
                   std::shared_ptr<TenantLabels> tenants)
    : metrics_(metrics), tenants_(std::move(tenants)) {
  for (const char* reason : kRejections)
    metrics.GetCounter("terrace_router_rejections_total", Labels{reason});
  for (const std::string& name : tiers) {
    const Labels labels = {name};
    Tier& tier = tiers_.emplace_back();
    tier.name = name;
    tier.inter_token = &metrics.GetHistogram("terrace_inter_token_latency_seconds", labels);
    tier.first_token = &metrics.GetHistogram("terrace_time_to_first_token_seconds", labels);
    tier.queue = &metrics.GetHistogram("terrace_request_queue_seconds", labels);
    tier.resume_gap = &metrics.GetHistogram("terrace_router_resume_gap_seconds", labels);
    tier.prompt_size = &metrics.GetHistogram("terrace_request_prompt_tokens", labels);
    tier.answer_size = &metrics.GetHistogram("terrace_request_generation_tokens", labels);
    tier.prompt_tokens = &metrics.GetCounter("terrace_prompt_tokens_total", labels);
    tier.cached_tokens = &metrics.GetCounter("terrace_cached_tokens_total", labels);
    tier.predicted_tokens = &metrics.GetCounter("terrace_prefix_predicted_tokens_total", labels);
    tier.missed_tokens = &metrics.GetCounter("terrace_prefix_error_tokens_total", Labels{name, "over"});
    tier.surplus_tokens = &metrics.GetCounter("terrace_prefix_error_tokens_total", Labels{name, "under"});
    tier.generation_tokens = &metrics.GetCounter("terrace_generation_tokens_total", labels);
    tier.accepted_draft_tokens =
        &metrics.GetCounter("terrace_tier_draft_tokens_total", Labels{name, "accepted"});
    tier.rejected_draft_tokens =
        &metrics.GetCounter("terrace_tier_draft_tokens_total", Labels{name, "rejected"});
    tier.cost = &metrics.GetCounter("terrace_cost_usd_total", labels);
    for (const std::string_view reason : kRetryReasons) RetryCounter(metrics, name, reason);
    for (const std::string_view reason : kResumeReasons) ResumeCounter(metrics, name, reason);
    for (const PoisonEvent event : {PoisonEvent::kQuarantined, PoisonEvent::kRefused})
      PoisonCounter(metrics, name, event);
    metrics.GetCounter("terrace_router_retries_refused_total", labels);
    const char* results[] = {"accepted", "escalated", "abandoned", "failed"};
    for (size_t i = 0; i < tier.attempts.size(); ++i) {
      tier.attempts[i] = &metrics.GetCounter("terrace_tier_attempts_total", Labels{name, results[i]});
    }
    const char* picks[] = {"cached", "uncached", "none"};
    for (size_t i = 0; i < tier.picks.size(); ++i) {
      tier.picks[i] = &metrics.GetCounter("terrace_router_picks_total", Labels{name, picks[i]});
    }
    tier.pick_seconds = &metrics.GetHistogram("terrace_router_pick_seconds", labels);
  }
}

void Recorder::OnPick(size_t tier, PickResult result, double seconds) {
  tiers_[tier].picks[static_cast<size_t>(result)]->Add();
  tiers_[tier].pick_seconds->Observe(seconds);
}

void Recorder::OnAttempt(size_t tier_index, AttemptResult result, const AnswerAttempt& attempt) {
  const Tier& tier = tiers_[tier_index];
  tier.attempts[static_cast<size_t>(result)]->Add();
  tier.prompt_tokens->Add(attempt.usage.prompt_tokens);
  tier.cached_tokens->Add(attempt.usage.cached_tokens);
  tier.generation_tokens->Add(attempt.usage.completion_tokens);
  if (result == AttemptResult::kAccepted || result == AttemptResult::kEscalated) {
    const uint32_t predicted = attempt.predicted_cached_tokens, really = attempt.usage.cached_tokens;
    tier.predicted_tokens->Add(predicted);
    (really < predicted ? tier.missed_tokens : tier.surplus_tokens)
        ->Add(really < predicted ? predicted - really : really - predicted);
    tier.accepted_draft_tokens->Add(attempt.accepted_draft_tokens);
    tier.rejected_draft_tokens->Add(attempt.draft_tokens - attempt.accepted_draft_tokens);
  }
  tier.cost->Add(attempt.price_usd);
}

void Recorder::OnEscalation(size_t from, size_t to) {
  metrics_.GetCounter("terrace_escalations_total", Labels{tiers_[from].name, tiers_[to].name}).Add();
}

void Recorder::OnRetry(size_t tier, std::string_view reason, bool is_allowed) {
  if (is_allowed) return RetryCounter(metrics_, tiers_[tier].name, reason).Add();
  metrics_.GetCounter("terrace_router_retries_refused_total", Labels{tiers_[tier].name}).Add();
}

void Recorder::OnResume(size_t tier, std::string_view reason) {
  ResumeCounter(metrics_, tiers_[tier].name, reason).Add();
}

void Recorder::OnPoison(size_t tier, PoisonEvent event) {
  PoisonCounter(metrics_, tiers_[tier].name, event).Add();
}

void Recorder::OnRequest(const RequestRecord& record) {
  const AnswerSummary& summary = record.summary;
  const std::string outcome(OutcomeOf(record.status));
  const std::string tier = summary.tier.empty() ? "none" : summary.tier;
  const std::string_view finish_reason = FinishReason(record);
  metrics_
      .GetCounter("terrace_requests_total",
                  Labels{std::string(ApiName(record.api)), record.model, tier, outcome,
                         std::string(finish_reason.empty() ? "none" : finish_reason)})
      .Add();
  if (Reason(record.status) == "slow_reader") {
    metrics_.GetCounter("terrace_slow_readers_total", Labels{std::string(ApiName(record.api))}).Add();
  }
  metrics_.GetHistogram("terrace_request_duration_seconds", Labels{tier, outcome})
      .Observe(summary.total_seconds);
  const auto found =
      std::find_if(tiers_.begin(), tiers_.end(), [&](const Tier& t) { return t.name == summary.tier; });
  if (found != tiers_.end()) {
    if (record.has_first_token) found->first_token->Observe(summary.time_to_first_token_seconds);
    if (record.queue_seconds >= 0) found->queue->Observe(record.queue_seconds);
    found->prompt_size->Observe(summary.usage.prompt_tokens);
    found->answer_size->Observe(summary.usage.completion_tokens);
  }
  if (const char* reason = RejectionOf(record.status); reason != nullptr)
    metrics_.GetCounter("terrace_router_rejections_total", Labels{reason}).Add();
  OnTenant(record);
  LogRequest(record);
}

void Recorder::OnShadowedPolicy(const std::string& policy) {
  using enum ShadowResult;
  for (const ShadowResult result : {kAgreed, kDisagreed, kFailed, kDropped})
    ShadowCounter(metrics_, policy, result);
  AgreementHistogram(metrics_, policy);
  OnAgreement(policy, 1, false);
}

void Recorder::OnRecordedPolicy(const std::string& policy) {
  using enum RecordResult;
  for (const RecordResult result : {kWritten, kDropped, kFailed, kUnwritten, kRefused})
    RecordCounter(metrics_, policy, result);
}

void Recorder::OnShadow(const std::string& policy, ShadowResult result, std::optional<double> agreement) {
  ShadowCounter(metrics_, policy, result).Add();
  if (agreement.has_value()) AgreementHistogram(metrics_, policy).Observe(*agreement);
}

void Recorder::OnRecord(const std::string& policy, RecordResult result) {
  RecordCounter(metrics_, policy, result).Add();
}

void Recorder::OnAgreement(const std::string& policy, double agreement, bool has_drifted) {
  metrics_.GetGauge("terrace_policy_agreement_ratio", Labels{policy}).Set(agreement);
  metrics_.GetGauge("terrace_policy_drifted", Labels{policy}).Set(has_drifted ? 1 : 0);
}

void Recorder::OnTenant(const RequestRecord& record) {
  const std::string tenant = tenants_->LabelOf(record.tenant);
  const TokenUsage& usage = record.summary.usage;
  metrics_.GetCounter("terrace_tenant_requests_total", Labels{tenant, std::string(OutcomeOf(record.status))})
      .Add();
  metrics_.GetCounter("terrace_tenant_tokens_total", Labels{tenant, "prompt"}).Add(usage.prompt_tokens);
  metrics_.GetCounter("terrace_tenant_tokens_total", Labels{tenant, "completion"})
      .Add(usage.completion_tokens);
  if (const char* reason = RejectionOf(record.status); reason != nullptr)
    metrics_.GetCounter("terrace_tenant_rejections_total", Labels{tenant, reason}).Add();
}

}  // namespace terrace
