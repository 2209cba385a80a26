#include "router/dispatch/shared_request.h"

#include <algorithm>
#include <utility>

#include "base/rng.h"
#include "router/request/param.h"

namespace terrace {
namespace {

uint64_t SeedFor(const Request& request, DispatchState& state) {
  if (request.sampling().seed.has_value()) return *request.sampling().seed;
  return RandomBits(state.parts.seed, state.seeds++);
}

}  // namespace

SharedRequest::SharedRequest(std::shared_ptr<DispatchState> state, RequestPtr request,
                             const CatalogEntry& entry)
    : state_(std::move(state)),
      request_(std::move(request)),
      entry_(entry),
      plan_(entry.policy->Plan(*request_, *state_->parts.cluster.View())),
      seed_(SeedFor(*request_, *state_)) {}

uint64_t SharedRequest::SeedOf(uint32_t draw) const { return ChoiceSeed(seed_, draw); }

StatusOr<PromptPtr> SharedRequest::PromptFor(const TierView& tier) {
  std::lock_guard lock(mutex_);
  PromptPtr& prompt = prompts_[tier.text_digest];
  if (prompt == nullptr) {
    ASSIGN_OR_RETURN(prompt, EncodeInput(*request_, tier));
  } else {  // models of one tokenizer may have vocabularies of several sizes
    RETURN_IF_ERROR(CheckTokenIds(*request_, tier));
  }
  RETURN_IF_ERROR(CheckContext(*request_, prompt->size(), tier));
  if (request_->is_prompt_only() && prompt->size() < 2)
    return ParamError("invalid_value", "prompt", "needs at least 2 tokens to be scored");
  return prompt;
}

Status SharedRequest::CheckLastTier() {
  if (request_->is_prompt_only() && plan_.size() > 1)
    return ParamError("invalid_value", "model", "scores come from one tier, ", entry_.id, " is a policy");
  const auto view = state_->parts.cluster.View();
  const TierView& last = view->tiers[plan_.back().tier];
  return last.text == nullptr ? Status() : PromptFor(last).status();
}

StatusOr<PickedReplica> SharedRequest::Pick(const ClusterView& view, size_t tier,
                                            std::span<const TokenId> prompt,
                                            const std::set<ReplicaId>& tried) {
  std::lock_guard lock(mutex_);
  const TierView& in = view.tiers[tier];
  if (const auto last = picked_.find(tier); last != picked_.end() && !tried.contains(last->second.id)) {
    const auto found = std::ranges::find(in.ready, last->second.id, &ReadyReplica::id);
    if (found != in.ready.end()) return PickedReplica{&in.replicas[found->index], last->second.cached_tokens};
  }
  // A prompt whose scores are wanted is computed whole.
  const auto reusable = request_->prompt_logprobs().has_value() ? std::span<const TokenId>() : prompt;
  ASSIGN_OR_RETURN(const PickedReplica picked, PickReplica(*state_, *request_, view, tier, reusable, tried));
  picked_[tier] = {picked.replica->id, picked.cached_tokens};
  return picked;
}

bool SharedRequest::PaysForPrompt(size_t tier, uint32_t draw) {
  std::lock_guard lock(mutex_);
  return payers_.try_emplace(tier, draw).first->second == draw;
}

}  // namespace terrace
