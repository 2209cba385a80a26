#include "router/dispatch/shared_request.h"

#include <algorithm>
#include <utility>

#include "base/rng.h"
#include "router/dispatch/shadows.h"
#include "router/request/param.h"
#include "router/tier/plan_request.h"

namespace terrace {
namespace {

uint64_t SeedFor(const Request& request, DispatchState& state) {
  if (request.sampling().seed.has_value()) return *request.sampling().seed;
  return RandomBits(state.parts.seed, state.seeds++);
}

}  // namespace

class SharedRequest::Meter : public PromptMeter {
 public:
  explicit Meter(SharedRequest& owner) : owner_(owner), request_(*owner.request_) {}

  StatusOr<size_t> Tokens(const TierView& tier) const override {
    if (tier.text == nullptr) return UnknownTokens();
    ASSIGN_OR_RETURN(const PromptPtr prompt, owner_.PromptFor(tier));
    return prompt->size();
  }
  StatusOr<size_t> CachedTokens(const TierView& tier) const override {
    if (tier.text == nullptr || request_.prompt_logprobs().has_value()) return size_t{0};
    ASSIGN_OR_RETURN(const PromptPtr prompt, owner_.EncodedFor(tier));
    return MostCachedTokens(tier, request_.cache_salt(), *prompt);
  }

 private:
  size_t UnknownTokens() const {
    const auto* tokens = std::get_if<std::vector<TokenId>>(&request_.input());
    return tokens != nullptr ? tokens->size() : std::max<size_t>(TextBytes(request_), 1);
  }

  SharedRequest& owner_;
  const Request& request_;
};

SharedRequest::SharedRequest(std::shared_ptr<DispatchState> state, RequestPtr request,
                             const CatalogEntry& entry)
    : state_(std::move(state)),
      request_(std::move(request)),
      entry_(entry),
      seed_(SeedFor(*request_, *state_)) {}

uint64_t SharedRequest::SeedOf(uint32_t draw) const { return ChoiceSeed(seed_, draw); }

Status SharedRequest::MakePlan() {
  const auto view = state_->parts.cluster.View();
  const Meter meter(*this);
  std::vector<AnswerSpeed> speeds;
  if (entry_.policy->needs_speeds() || request_->max_seconds().has_value())
    speeds = state_->parts.admission.SpeedsFor(*request_);
  ASSIGN_OR_RETURN(plan_, PlanRequest(state_->parts.catalog, entry_, state_->shadows->HasDrifted(entry_),
                                      {*request_, *view, meter, speeds}));
  return {};
}

StatusOr<PromptPtr> SharedRequest::EncodedFor(const TierView& tier) {
  std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(prompts_, tier.text_digest, &EncodedPrompt::text_digest);
  if (found != prompts_.end()) {  // models of one tokenizer may have vocabularies of several sizes
    RETURN_IF_ERROR(CheckTokenIds(*request_, tier));
    return found->prompt;
  }
  ASSIGN_OR_RETURN(PromptPtr prompt, EncodeInput(request_, tier));
  prompts_.push_back({tier.text_digest, prompt});
  return prompt;
}

SharedRequest::AskedTier& SharedRequest::At(size_t tier) {
  const auto found = std::ranges::find(asked_, tier, &AskedTier::tier);
  return found != asked_.end() ? *found : asked_.emplace_back(AskedTier{.tier = tier});
}

StatusOr<PromptPtr> SharedRequest::PromptFor(const TierView& tier) {
  ASSIGN_OR_RETURN(PromptPtr prompt, EncodedFor(tier));
  RETURN_IF_ERROR(CheckContext(*request_, prompt->size(), tier));
  if (request_->is_prompt_only() && prompt->size() < 2)
    return ParamError("invalid_value", "prompt", "needs at least 2 tokens to be scored");
  return prompt;
}

Status SharedRequest::CheckLastTier() {
  if (request_->is_prompt_only() && plan_.steps.size() > 1)
    return ParamError("invalid_value", "model", "scores come from one tier, ", entry_.id, " is a policy");
  const auto view = state_->parts.cluster.View();
  const TierView& last = view->tiers[plan_.steps.back().tier];
  return last.text == nullptr ? Status() : PromptFor(last).status();
}

StatusOr<PickedReplica> SharedRequest::Pick(const ClusterView& view, size_t tier,
                                            std::span<const TokenId> prompt,
                                            const std::set<ReplicaId>& tried) {
  std::lock_guard lock(mutex_);
  const TierView& in = view.tiers[tier];
  std::optional<Picked>& last = At(tier).picked;
  if (last.has_value() && !tried.contains(last->id)) {
    const auto found = std::ranges::find(in.ready, last->id, &ReadyReplica::id);
    if (found != in.ready.end()) return PickedReplica{&in.replicas[found->index], last->cached_tokens};
  }
  // A prompt whose scores are wanted is computed whole.
  const auto reusable = request_->prompt_logprobs().has_value() ? std::span<const TokenId>() : prompt;
  ASSIGN_OR_RETURN(const PickedReplica picked, PickAndCount(*state_, *request_, view, tier, reusable, tried));
  last = Picked{.id = picked.replica->id, .cached_tokens = picked.cached_tokens};
  return picked;
}

bool SharedRequest::PaysForPrompt(size_t tier, uint32_t draw) {
  std::lock_guard lock(mutex_);
  std::optional<uint32_t>& payer = At(tier).payer;
  if (!payer.has_value()) payer = draw;
  return payer == draw;
}

void SharedRequest::OfferToShadow(size_t tier, const TierAnswer* answer, AnswerEnd end) {
  if (!entry_.shadow.has_value()) return;
  const bool is_watched = plan_.is_measured && tier != entry_.tiers.back();
  std::lock_guard lock(mutex_);
  state_->shadows->Offer(entry_, {.request = request_,
                                  .prompts = prompts_,
                                  .tier = tier,
                                  .answer = is_watched ? answer : nullptr,
                                  .is_cut = end == AnswerEnd::kLength});
}

}  // namespace terrace
