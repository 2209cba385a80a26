// What operators see of requests: metrics and one access log line each. Owned by main; outlives the
// dispatcher. Thread-safe.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "base/status.h"
#include "router/request/answer.h"
#include "router/request/request.h"

namespace terrace {

// ok, client_error, cancelled, deadline, overloaded, unavailable or error: the outcome label.
std::string_view OutcomeOf(const Status& status);

// One request at its end. `summary` holds what is known, also when `status` is an error.
struct RequestRecord {
  ApiKind api = ApiKind::kGenerate;
  std::string request_id = {};
  std::string model = "unknown";  // a configured name: client text never becomes a label
  Status status = {};
  AnswerSummary summary = {};
  uint32_t answers = 0;  // asked for, those included that are drawn and not sent
  bool has_first_token = false;
  double queue_seconds = -1;  // negative: it never reached a worker
};

class Recorder {
 public:
  // Abandoned: the client went away, or the time it gave is over. Failed: the worker did.
  enum class AttemptResult { kAccepted, kEscalated, kAbandoned, kFailed };

  // `tiers` as configured; metrics have a series for each from the start.
  Recorder(MetricRegistry& metrics, std::span<const std::string> tiers);

  void OnInterToken(size_t tier, double seconds) { tiers_[tier].inter_token->Observe(seconds); }
  void OnAttempt(size_t tier, AttemptResult result, const AnswerAttempt& attempt);
  void OnEscalation(size_t from, size_t to);
  void OnRequest(const RequestRecord& record);

 private:
  struct Tier {
    std::string name;
    MetricRegistry::Histogram* inter_token;  // all live as long as the registry
    MetricRegistry::Histogram* first_token;
    MetricRegistry::Histogram* queue;
    MetricRegistry::Counter* prompt_tokens;
    MetricRegistry::Counter* cached_tokens;
    MetricRegistry::Counter *predicted_tokens, *missed_tokens, *surplus_tokens;  // that were to be cached
    MetricRegistry::Counter* generation_tokens;
    MetricRegistry::Counter* cost;
    std::array<MetricRegistry::Counter*, 4> attempts;  // by AttemptResult
  };
  MetricRegistry& metrics_;
  std::vector<Tier> tiers_;
};

}  // namespace terrace
