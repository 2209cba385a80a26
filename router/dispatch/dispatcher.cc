#include "router/dispatch/dispatcher.h"

#include <utility>

#include "router/dispatch/answers.h"
#include "router/dispatch/prompt.h"
#include "router/dispatch/scoring.h"

namespace terrace {
namespace {

struct Admitted {
  const CatalogEntry* entry;
  Admission::Ticket ticket;
};

class ClusterDispatcher : public Dispatcher {
 public:
  explicit ClusterDispatcher(const DispatcherParts& parts) : state_(std::make_shared<DispatchState>(parts)) {}

  CancelCall Generate(RequestPtr request, std::shared_ptr<AnswerSink> sink) override {
    auto admitted = Admit(*request);
    if (!admitted.ok()) {
      sink->OnFinish(admitted.status());
      return [] {};
    }
    const auto shared = std::make_shared<SharedRequest>(state_, std::move(request), *admitted->entry);
    const auto answers = std::make_shared<Answers>(shared, std::move(admitted->ticket), std::move(sink));
    answers->Start();
    return CancelOf(answers);
  }

  CancelCall Score(RequestPtr request, OnScore on_score) override {
    auto admitted = Admit(*request);
    if (!admitted.ok()) {
      on_score(admitted.status());
      return [] {};
    }
    const auto scoring = std::make_shared<Scoring>(state_, std::move(admitted->ticket), std::move(request),
                                                   *admitted->entry, std::move(on_score));
    scoring->Start();
    return CancelOf(scoring);
  }

  StatusOr<std::vector<TokenId>> Tokenize(const Request& request) override {
    ASSIGN_OR_RETURN(const CatalogEntry* entry, state_->parts.catalog.Find(request.model()));
    const auto view = state_->parts.cluster.View();
    const TierView& tier = view->tiers[entry->tiers.front()];
    if (tier.text == nullptr) {
      return WithReason(Unavailable("no worker of tier ", tier.name, " has been reached yet"), "no_capacity");
    }
    ASSIGN_OR_RETURN(const PromptPtr tokens, EncodeInput(request, tier));
    return *tokens;
  }

  std::vector<ModelInfo> ListModels() const override {
    const auto view = state_->parts.cluster.View();
    const ModelCatalog& catalog = state_->parts.catalog;
    std::vector<ModelInfo> out;
    for (const CatalogEntry& entry : catalog.entries()) {
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

  void RecordRefused(ApiKind api, const std::string& request_id, const Status& status) override {
    state_->parts.recorder.OnRequest({.api = api, .request_id = request_id, .status = status});
  }

 private:
  StatusOr<Admitted> Admit(const Request& request) {
    auto entry = state_->parts.catalog.Find(request.model());
    auto ticket = entry.ok() ? state_->parts.admission.Admit() : entry.status();
    if (ticket.ok()) return Admitted{*entry, *std::move(ticket)};
    RequestRecord record{.api = request.api(), .request_id = request.request_id(), .status = ticket.status()};
    if (entry.ok()) record.model = (*entry)->id;
    record.summary.total_seconds = Seconds(state_->parts.clock.Now() - request.arrival());
    state_->parts.recorder.OnRequest(record);
    return ticket.status();
  }

  // The running call keeps the work alive; this only reaches it while it is.
  template <typename Work>
  static CancelCall CancelOf(const std::shared_ptr<Work>& work) {
    return [weak = std::weak_ptr<Work>(work)] {
      if (const auto running = weak.lock()) running->Cancel();
    };
  }

  const std::shared_ptr<DispatchState> state_;
};

}  // namespace

std::unique_ptr<Dispatcher> MakeDispatcher(const DispatcherParts& parts) {
  return std::make_unique<ClusterDispatcher>(parts);
}

}  // namespace terrace
