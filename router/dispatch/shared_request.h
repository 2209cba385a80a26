// What the answers to one request have in common: the plan, the prompt in each tier's tokens, and one replica
// a tier, where they find each other's prompt in the cache. Thread-safe; shared by the generations of the
// request.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "router/dispatch/attempts.h"
#include "router/dispatch/prompt.h"
#include "router/dispatch/tier_answer.h"

namespace terrace {

class SharedRequest {
 public:
  SharedRequest(std::shared_ptr<DispatchState> state, RequestPtr request, const CatalogEntry& entry);

  DispatchState& state() const { return *state_; }
  const RequestPtr& request() const { return request_; }
  const std::string& model() const { return entry_.id; }

  // Once, before all that looks at the plan. Errors of PlanRequest.
  Status MakePlan();
  const std::vector<PlanStep>& plan() const { return plan_.steps; }
  // Why its tier answered; `first` as of NextStep.
  std::string ReasonOf(size_t step, const AnswerSignals& first) const {
    return terrace::ReasonOf(plan_, step, first);
  }
  uint64_t SeedOf(uint32_t draw) const;  // the same for every attempt at it
  MonoTime Now() const { return state_->parts.clock.Now(); }

  // Errors of EncodeInput and CheckContext.
  StatusOr<PromptPtr> PromptFor(const TierView& tier);
  // What the plan's last tier cannot hold: refused before any worker is asked, as no earlier answer may be
  // accepted. So are the scores of a prompt alone from a plan of several tiers.
  Status CheckLastTier();
  // The replica that was picked last on the plan's `tier` (an index into the view), while it is ready and not
  // in `tried`; else a fresh pick for `prompt`, with the errors of PickReplica. `view` outlives the result.
  StatusOr<PickedReplica> Pick(const ClusterView& view, size_t tier, std::span<const TokenId> prompt,
                               const std::set<ReplicaId>& tried);
  // Whether `draw` is the one that asks `tier` first: the prompt is billed with it, the others share it.
  bool PaysForPrompt(size_t tier, uint32_t draw);
  // An answer is over: `answer` is what `tier` gave, null when there is none, and `end` how it ended. While
  // the request has its ticket.
  void OfferToShadow(size_t tier, const TierAnswer* answer, AnswerEnd end);

 private:
  class Meter;
  StatusOr<PromptPtr> EncodedFor(const TierView& tier);

  const std::shared_ptr<DispatchState> state_;
  const RequestPtr request_;
  const CatalogEntry& entry_;  // the catalog outlives requests
  const uint64_t seed_;
  TierPlan plan_;  // not changed after MakePlan

  struct Picked {
    ReplicaId id = 0;
    uint32_t cached_tokens = 0;
  };
  struct AskedTier {
    size_t tier = 0;
    std::optional<Picked> picked = {};   // last
    std::optional<uint32_t> payer = {};  // the draw that its prompt is billed with
  };
  AskedTier& At(size_t tier);  // with mutex_ held

  std::mutex mutex_;
  // A few at most, and kept as long as the request runs.
  std::vector<EncodedPrompt> prompts_;  // GUARDED_BY(mutex_)
  std::vector<AskedTier> asked_;        // GUARDED_BY(mutex_)
};

}  // namespace terrace
