#include "router/dispatch/dispatcher.h"

#include <utility>

#include "router/dispatch/answers.h"
#include "router/dispatch/late_cancel.h"
#include "router/dispatch/prompt.h"
#include "router/dispatch/scoring.h"
#include "router/dispatch/shadows.h"
#include "router/request/param.h"
#include "text/detokenizer.h"

namespace terrace {
namespace {

constexpr size_t kMaxTokenizedBytes = size_t{1} << 20;
constexpr size_t kMaxDetokenizedTokens = size_t{1} << 17, kMaxDetokenizedBytes = size_t{8} << 20;

Status CheckTextSize(const Request& request) {
  const bool is_chat = std::holds_alternative<std::vector<ChatMessage>>(request.input());
  const size_t bytes = TextBytes(request);
  if (bytes <= kMaxTokenizedBytes) return {};
  return ParamError("invalid_value", is_chat ? "messages" : "prompt", bytes, " bytes, limit ",
                    kMaxTokenizedBytes);
}

Status CheckTokensSize(const std::vector<TokenId>& tokens, const Tokenizer& tokenizer) {
  if (tokens.size() > kMaxDetokenizedTokens)
    return ParamError("invalid_value", "tokens", tokens.size(), " entries, limit ", kMaxDetokenizedTokens);
  size_t bytes = 0;
  for (const TokenId token : tokens) bytes += tokenizer.TokenBytes(token, /*with_control=*/true).size();
  if (bytes <= kMaxDetokenizedBytes) return {};
  return ParamError("invalid_value", "tokens", bytes, " bytes of text, limit ", kMaxDetokenizedBytes);
}

class ClusterDispatcher : public Dispatcher {
 public:
  explicit ClusterDispatcher(const DispatcherParts& parts) : state_(std::make_shared<DispatchState>(parts)) {}
  ~ClusterDispatcher() override { state_->shadows->Close(); }

  CancelCall Generate(RequestPtr request, std::shared_ptr<AnswerSink> sink) override {
    const auto make = [sink](std::shared_ptr<SharedRequest> shared, Admission::Ticket ticket) {
      return std::make_shared<Answers>(std::move(shared), std::move(ticket), sink);
    };
    return Begin<Answers>(request, make, [sink](const Status& status) { sink->OnFinish(status); });
  }

  CancelCall Score(RequestPtr request, OnScore on_score) override {
    const auto make = [on_score](std::shared_ptr<SharedRequest> shared, Admission::Ticket ticket) {
      return std::make_shared<Scoring>(std::move(shared), std::move(ticket), on_score);
    };
    return Begin<Scoring>(request, make, [on_score](const Status& status) { on_score(status); });
  }

  CancelCall Tokenize(RequestPtr request, bool with_bytes, OnTokenized on_tokenized) override {
    const auto tokenize = [&](const TierView& tier) -> StatusOr<TokenizedInput> {
      RETURN_IF_ERROR(CheckTextSize(*request));
      ASSIGN_OR_RETURN(const PromptPtr prompt, EncodeInput(request, tier));
      TokenizedInput out{.tokens = *prompt, .context_length = tier.context_length};
      for (const TokenId token : with_bytes ? out.tokens : std::vector<TokenId>())
        out.token_bytes.emplace_back(tier.text->tokenizer->TokenBytes(token, /*with_control=*/true));
      return out;
    };
    on_tokenized(OnFirstTier<TokenizedInput>(*request, tokenize));
    return [] {};
  }

  CancelCall Detokenize(RequestPtr request, OnText on_text) override {
    const auto detokenize = [&](const TierView& tier) -> StatusOr<std::string> {
      RETURN_IF_ERROR(CheckTokenIds(*request, tier));
      const auto& tokens = std::get<std::vector<TokenId>>(request->input());
      const Tokenizer& tokenizer = *tier.text->tokenizer;
      RETURN_IF_ERROR(CheckTokensSize(tokens, tokenizer));
      return PromptText(tokenizer, tokens);
    };
    on_text(OnFirstTier<std::string>(*request, detokenize));
    return [] {};
  }

  std::vector<ModelInfo> ListModels(const Tenant& tenant) const override {
    const auto view = state_->parts.cluster.View();
    const ModelCatalog& catalog = state_->parts.catalog;
    std::vector<ModelInfo> out;
    for (const CatalogEntry& entry : catalog.entries()) {
      if (!tenant.MayUse(entry.id)) continue;
      const size_t last = entry.tiers.back();
      ModelInfo& info = out.emplace_back(ModelInfo{.id = entry.id,
                                                   .is_policy = entry.is_policy,
                                                   .context_length = view->tiers[last].context_length,
                                                   .parameters = view->tiers[last].parameters,
                                                   .price = catalog.tiers()[last].price});
      for (const size_t tier : entry.tiers) {
        if (entry.is_policy) info.tiers.push_back(catalog.tiers()[tier].name);
        if (view->tiers[tier].ready_replicas() > 0) info.is_ready = true;
      }
    }
    return out;
  }

  void Housekeep() override {
    state_->timers.RunDue(state_->parts.clock.Now());
    state_->waiting.WakeAll();
    state_->shadows->Housekeep(*state_);
    state_->running.ForgetOver();
  }

  void EndRequests() override { state_->running.EndAll(); }

  void RecordRefused(const RefusedRequest& refused) override {
    state_->parts.recorder.OnRequest({.api = refused.api,
                                      .request_id = refused.request_id,
                                      .tenant = refused.tenant,
                                      .trace = refused.trace,
                                      .is_http = refused.is_http,
                                      .http_status = refused.http_status,
                                      .peer = refused.peer,
                                      .status = refused.status});
  }

 private:
  StatusOr<const CatalogEntry*> Find(const Request& request) const {
    ASSIGN_OR_RETURN(const CatalogEntry* entry, state_->parts.catalog.Find(request.model()));
    if (!request.tenant()->MayUse(entry->id)) return ModelNotAllowed(entry->id);
    return entry;
  }

  // `run` on the first tier of the request's model, counted and logged: nothing that a worker does.
  template <typename Result, typename Run>
  StatusOr<Result> OnFirstTier(const Request& request, const Run& run) {
    RequestRecord record = RequestRecord::Of(request);
    const auto entry = Find(request);
    if (entry.ok()) record.model = (*entry)->id;
    const auto lease = entry.ok() ? state_->parts.admission.EnterAside(request) : entry.status();
    const auto result = [&]() -> StatusOr<Result> {
      RETURN_IF_ERROR(lease.status());
      const auto view = state_->parts.cluster.View();
      const TierView& tier = view->tiers[(*entry)->tiers.front()];
      if (tier.text == nullptr) return NoCapacity(tier);
      return run(tier);
    }();
    record.status = result.status();
    record.summary.total_seconds = Seconds(state_->parts.clock.Now() - request.arrival());
    state_->parts.recorder.OnRequest(record);
    return result;
  }

  // The request's way to its work, which `make` makes when it is admitted; `refuse` is told why it never is.
  template <typename Work, typename Make, typename Refuse>
  CancelCall Begin(const RequestPtr& request, Make make, Refuse refuse) {
    const auto entry = Find(*request);
    const auto on_refused = [this, request, refuse,
                             model = entry.ok() ? (*entry)->id : std::string()](const Status& status) {
      RecordRefusal(*request, model, status);
      refuse(status);
    };
    Status refused = entry.status();
    // What is refused anyway costs no tokenizing: a plan by price or time counts the prompt's tokens.
    if (refused.ok()) refused = state_->parts.admission.PeekTenant(*request->tenant());
    std::shared_ptr<SharedRequest> shared;
    if (refused.ok()) {
      shared = std::make_shared<SharedRequest>(state_, request, **entry);
      refused = shared->MakePlan();
    }
    if (refused.ok()) {
      const size_t tier = shared->plan().front().tier;
      refused = state_->parts.admission.Peek(*request, tier);
      if (refused.ok()) refused = shared->CheckLastTier();
      const auto start = [shared, make](Admission::Ticket ticket) { return make(shared, std::move(ticket)); };
      if (refused.ok()) return Admit<Work>(*request, tier, start, on_refused);
    }
    on_refused(refused);
    return [] {};
  }

  // `start` makes the work from its ticket.
  template <typename Work, typename Make, typename Refusal>
  CancelCall Admit(const Request& request, size_t tier, Make start, Refusal refuse) {
    Admission& admission = state_->parts.admission;
    const auto cancel = std::make_shared<LateCancel>();
    const auto id = admission.Enter(
        request, tier, [state = state_, cancel, start, refuse](StatusOr<Admission::Ticket> ticket) {
          if (ticket.ok() && cancel->is_cancelled()) {
            ticket->Charge(0, 0);
            ticket = ClientGone();
          }
          if (!ticket.ok()) return refuse(ticket.status());
          const std::shared_ptr<Work> work = start(*std::move(ticket));
          work->Start();
          const auto end = [running = std::weak_ptr(work)] {  // its calls keep it alive
            if (const auto alive = running.lock()) alive->Cancel();
          };
          cancel->Set(end);
          state->running.Add(work, end);
        });
    return [&admission, cancel, id] {
      cancel->Cancel();
      admission.Cancel(id);
    };
  }

  void RecordRefusal(const Request& request, const std::string& model, const Status& status) {
    RequestRecord record = RequestRecord::Of(request);
    record.status = status;
    if (!model.empty()) record.model = model;
    record.summary.total_seconds = Seconds(state_->parts.clock.Now() - request.arrival());
    state_->parts.recorder.OnRequest(record);
  }

  const std::shared_ptr<DispatchState> state_;
};

}  // namespace

std::unique_ptr<Dispatcher> MakeDispatcher(const DispatcherParts& parts) {
  return std::make_unique<ClusterDispatcher>(parts);
}

}  // namespace terrace
