// Runs validated requests on the cluster: what the APIs call. Two implementations: ClusterDispatcher
// (MakeDispatcher) and the fake of the API tests. Thread-safe; never blocks.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "router/admission/admission.h"
#include "router/balance/balancer.h"
#include "router/cluster/cluster_view.h"
#include "router/dispatch/recorder.h"
#include "router/dispatch/retry_budget.h"
#include "router/request/answer.h"
#include "router/request/request.h"
#include "router/tier/model_catalog.h"

namespace terrace {

class Quarantine;

struct ScoreAnswer {
  TokenId first_token = 0;               // has no log-probability
  std::vector<AnswerToken> tokens = {};  // the others
  double sum_logprob = 0;
  std::string tier = {};
  double price_usd = 0;
};

struct TokenizedInput {
  std::vector<TokenId> tokens = {};
  std::vector<std::string> token_bytes = {};  // of each token, control tokens written out; when asked for
  uint32_t context_length = 0;                // of the tier whose tokens they are
};

struct ModelInfo {
  std::string id = {};
  bool is_policy = false;
  std::vector<std::string> tiers = {};  // of a policy, in order
  bool is_ready = false;                // a tier of it has a ready replica
  uint32_t context_length = 0;          // of the last tier; 0 until it was seen
  uint64_t parameters = 0;              // of the last tier
  TierPrice price = {};                 // of the last tier
};

// What an API refused before it became a Request.
struct RefusedRequest {
  ApiKind api = ApiKind::kOther;
  std::string request_id = {};
  TenantPtr tenant = nullptr;  // null: nobody knows whose it is
  std::optional<TraceContext> trace = {};
  Status status = {};
  bool is_http = false;   // else it came over gRPC
  int http_status = 0;    // 0: that of `status`
  std::string peer = {};  // the address that it came from

  // One that was, and that nothing was done for.
  static RefusedRequest Of(const Request& request, const Status& status) {
    return {.api = request.api(),
            .request_id = request.request_id(),
            .tenant = request.tenant(),
            .trace = request.trace(),
            .status = status,
            .is_http = request.is_http(),
            .peer = request.peer()};
  }
};

class Dispatcher {
 public:
  using CancelCall = std::function<void()>;  // any thread, any number of times, also after the end
  using OnScore = std::function<void(StatusOr<ScoreAnswer>)>;
  using OnTokenized = std::function<void(StatusOr<TokenizedInput>)>;
  using OnText = std::function<void(StatusOr<std::string>)>;
  virtual ~Dispatcher() = default;

  // The sink, and all callbacks here, may be called before this returns. A closed sink or CancelCall ends the
  // work on the worker.
  virtual CancelCall Generate(RequestPtr request, std::shared_ptr<AnswerSink> sink) = 0;
  virtual CancelCall Score(RequestPtr request, OnScore on_score) = 0;
  // The input, of at most 1 MiB of text, as the model's (a policy's first tier's) tokens, and the text of at
  // most 131,072 tokens and 8 MiB, control tokens written out.
  virtual CancelCall Tokenize(RequestPtr request, bool with_bytes, OnTokenized on_tokenized) = 0;
  virtual CancelCall Detokenize(RequestPtr request, OnText on_text) = 0;
  virtual std::vector<ModelInfo> ListModels(const Tenant& tenant) const = 0;  // that it may use
  // Judges the answers that have been held back for long enough; looks for replicas for those that wait for
  // one, and ends those that waited for too long; starts shadow requests. To be called ten times a second and
  // when the cluster has changed.
  virtual void Housekeep() {}
  // Ends all requests with RouterDraining, now and those that are still to come.
  virtual void EndRequests() {}
  // Counts and logs it.
  virtual void RecordRefused(const RefusedRequest& refused) = 0;
};

// What a dispatcher works with; all of it outlives the dispatcher and the requests in flight.
struct DispatcherParts {
  const ClusterSource& cluster;
  const ModelCatalog& catalog;
  const Balancer& balancer;
  Admission& admission;
  Recorder& recorder;
  const Clock& clock;
  uint64_t seed = 0;  // of the seeds drawn for requests
  RetryOptions retries = {};
  std::shared_ptr<Quarantine> quarantine = nullptr;  // of all dispatchers there are; null: of this one alone
};

std::unique_ptr<Dispatcher> MakeDispatcher(const DispatcherParts& parts);

}  // namespace terrace
