// What operators see of requests: metrics and one access log line each. Owned by main; outlives the
// dispatcher. Thread-safe.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/metrics.h"
#include "base/status.h"
#include "router/request/answer.h"
#include "router/request/request.h"

namespace terrace {

// ok, client_error, cancelled, deadline, limited, overloaded, unavailable or error: the outcome label.
std::string_view OutcomeOf(const Status& status);

// The reason of what is refused because its connection resets too many calls.
inline constexpr char kTooManyResets[] = "too_many_resets";

// Why an attempt failed that another replica may do.
inline constexpr std::string_view kRetryReasons[] = {"unavailable", "unknown", "internal", "protocol",
                                                     "overloaded"};
// The same, of an answer that had begun.
inline constexpr std::string_view kResumeReasons[] = {"unavailable", "silent",   "draining",  "unknown",
                                                      "internal",    "protocol", "overloaded"};

// One request at its end. `summary` holds what is known, also when `status` is an error.
struct RequestRecord {
  ApiKind api = ApiKind::kGenerate;
  std::string request_id = {};
  TenantPtr tenant = nullptr;  // null: nobody knows whose it is
  std::optional<TraceContext> trace = {};
  bool is_http = false;           // else it came over gRPC
  int http_status = 0;            // 0: that of `status`
  std::string peer = {};          // the address that it came from
  std::string model = "unknown";  // a configured name: client text never becomes a label
  Status status = {};
  AnswerSummary summary = {};
  uint32_t answers = 0;  // asked for, those included that are drawn and not sent
  bool has_first_token = false;
  double queue_seconds = -1;  // negative: it never reached a worker

  // What is known of a request from its beginning.
  static RequestRecord Of(const Request& request) {
    return {.api = request.api(),
            .request_id = request.request_id(),
            .tenant = request.tenant(),
            .trace = request.trace(),
            .is_http = request.is_http(),
            .peer = request.peer()};
  }
};

// The tenants that metrics tell apart: the first fifty; the others are "other". Thread-safe.
class TenantLabels {
 public:
  std::string LabelOf(const TenantPtr& tenant) {
    if (tenant == nullptr) return "none";
    std::lock_guard lock(mutex_);
    if (shown_.size() < kMost) shown_.insert(tenant->name);
    return shown_.contains(tenant->name) ? tenant->name : "other";
  }

 private:
  static constexpr size_t kMost = 50;
  std::mutex mutex_;
  std::set<std::string> shown_;  // GUARDED_BY(mutex_)
};

class Recorder {
 public:
  // Abandoned: the client went away, or the time it gave is over. Failed: the worker did, or the router ended
  // it.
  enum class AttemptResult { kAccepted, kEscalated, kAbandoned, kFailed };
  // Quarantined: two workers were lost at one place (poison.h). Refused: because of that, later.
  enum class PoisonEvent { kQuarantined, kRefused };
  // Of a request that a smaller tier had answered: the last tier's answer agreed, disagreed or failed, or the
  // request was not given to it, or taken away.
  enum class ShadowResult { kAgreed, kDisagreed, kFailed, kDropped };
  // Of a request that all tiers were to be given: a record was written; not all of them could take it, or one
  // failed; it could not be written now; or never will be to this file.
  enum class RecordResult { kWritten, kDropped, kFailed, kUnwritten, kRefused };
  // A replica that has some of the prompt, one that has nothing of it, or no replica.
  enum class PickResult { kCached, kUncached, kNone };

  // `tiers` as configured; metrics have a series for each from the start.
  // `tenants` may be shared with other recorders of the registry.
  Recorder(MetricRegistry& metrics, std::span<const std::string> tiers,
           std::shared_ptr<TenantLabels> tenants = std::make_shared<TenantLabels>());

  void OnPick(size_t tier, PickResult result, double seconds);
  void OnInterToken(size_t tier, double seconds) { tiers_[tier].inter_token->Observe(seconds); }
  void OnAttempt(size_t tier, AttemptResult result, const AnswerAttempt& attempt);
  void OnEscalation(size_t from, size_t to);
  // An attempt on another replica of the tier; `reason` is one of kRetryReasons. Not allowed: there is none,
  // as there were too many lately.
  void OnRetry(size_t tier, std::string_view reason, bool is_allowed);
  // An attempt that goes on with an answer; `reason` is one of kResumeReasons. And so long after the token
  // before it, its first one has come.
  void OnResume(size_t tier, std::string_view reason);
  void OnResumed(size_t tier, double gap_seconds) { tiers_[tier].resume_gap->Observe(gap_seconds); }
  void OnPoison(size_t tier, PoisonEvent event);
  void OnRequest(const RequestRecord& record);
  // Policies by their names. Metrics have their series from the first call on.
  void OnShadowedPolicy(const std::string& policy);
  void OnRecordedPolicy(const std::string& policy);
  // `agreement` is of the two answers, when there are two.
  void OnShadow(const std::string& policy, ShadowResult result, std::optional<double> agreement = {});
  void OnRecord(const std::string& policy, RecordResult result);
  // `agreement` is of the pairs of late.
  void OnAgreement(const std::string& policy, double agreement, bool has_drifted);

 private:
  struct Tier {
    std::string name;
    MetricRegistry::Histogram* inter_token;  // all live as long as the registry
    MetricRegistry::Histogram* first_token;
    MetricRegistry::Histogram* queue;
    MetricRegistry::Histogram* resume_gap;
    MetricRegistry::Histogram *prompt_size, *answer_size;  // of requests, tokens
    MetricRegistry::Counter* prompt_tokens;
    MetricRegistry::Counter* cached_tokens;
    MetricRegistry::Counter *predicted_tokens, *missed_tokens, *surplus_tokens;  // that were to be cached
    MetricRegistry::Counter* generation_tokens;
    MetricRegistry::Counter *accepted_draft_tokens, *rejected_draft_tokens;
    MetricRegistry::Counter* cost;
    std::array<MetricRegistry::Counter*, 4> attempts;  // by AttemptResult
    std::array<MetricRegistry::Counter*, 3> picks;     // by PickResult
    MetricRegistry::Histogram* pick_seconds;
  };
  void OnTenant(const RequestRecord& record);

  MetricRegistry& metrics_;
  std::vector<Tier> tiers_;
  const std::shared_ptr<TenantLabels> tenants_;
};

}  // namespace terrace
