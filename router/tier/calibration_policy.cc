#include "router/tier/calibration_policy.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "router/tier/cache_affinity.h"
#include "router/tier/calibrated_tiers.h"

namespace terrace {
namespace {

// The features of GateScorer::weights.
constexpr std::string_view kGateFeatures[GateScorer::kSignals] = {
    "mean_logprob", "min_logprob",  "first_logprob", "log_answer_tokens", "mean_margin",
    "min_margin",   "first_margin", "mean_entropy",  "first_entropy"};

// While a tier serves another model than was measured, the last one answers alone.
class CalibratedPolicy : public TierPolicy {
 public:
  CalibratedPolicy(Calibration calibration, std::vector<CalibratedTier> steps)
      : calibration_(std::move(calibration)), steps_(std::move(steps)) {}

  StatusOr<TierPlan> Plan(const PlanQuery& query) const final {
    if (!IsStale(steps_, query.view)) return PlanFor(query);
    return TierPlan{.steps = {{.tier = steps_.back().tier}}, .reason = "fallback: stale calibration"};
  }

  Status Check(const ClusterView& view) const final { return CheckServed(calibration_, view); }

 protected:
  const std::vector<CalibratedTier>& steps() const { return steps_; }

 private:
  virtual StatusOr<TierPlan> PlanFor(const PlanQuery& query) const = 0;

  const Calibration calibration_;
  const std::vector<CalibratedTier> steps_;
};

class CalibratedCascade : public CalibratedPolicy {
 public:
  CalibratedCascade(Calibration calibration, std::vector<CalibratedTier> steps, bool verifies)
      : CalibratedPolicy(std::move(calibration), std::move(steps)), verifies_(verifies) {}

 private:
  StatusOr<TierPlan> PlanFor(const PlanQuery& query) const override {
    const PromptTraits traits = TraitsOf(query.request.input());
    TierPlan plan{.reason = "cascade", .names_step = true, .is_measured = true};
    for (const CalibratedTier& step : steps()) {
      PlanStep next{.tier = step.tier, .verifies = verifies_ && !plan.steps.empty()};
      if (step.gate.has_value())
        next.gate = Gate(GateScorerOf(step.gate->scorer, traits).value(), step.gate->threshold);
      plan.steps.push_back(std::move(next));
    }
    return plan;
  }

  const bool verifies_;
};

class CalibratedClassifier : public CalibratedPolicy {
 public:
  CalibratedClassifier(Calibration calibration, std::vector<CalibratedTier> steps,
                       std::vector<TierPrice> affinity_prices)
      : CalibratedPolicy(std::move(calibration), std::move(steps)),
        affinity_prices_(std::move(affinity_prices)) {}

 private:
  StatusOr<TierPlan> PlanFor(const PlanQuery& query) const override {
    const FeatureInputs inputs = {.prompt = TraitsOf(query.request.input())};
    auto chosen = std::ranges::find_if(steps(), [&](const CalibratedTier& step) {
      return !step.gate.has_value() || step.gate->Accepts(inputs);  // the last one has none
    });
    const size_t tier = chosen->tier;
    if (!affinity_prices_.empty()) {
      std::vector<size_t> larger;
      while (++chosen != steps().end()) larger.push_back(chosen->tier);
      ASSIGN_OR_RETURN(const size_t cached, VetoDowngrade(query, affinity_prices_, tier, larger));
      if (cached != tier) return TierPlan{.steps = {{.tier = cached}}, .reason = "cache affinity"};
    }
    return TierPlan{.steps = {{.tier = tier}}, .reason = "classifier", .is_measured = true};
  }

  const std::vector<TierPrice> affinity_prices_;  // of all tiers; empty: the cache has no say
};

}  // namespace

PromptTraits TraitsOf(const RequestInput& input) {
  PromptTraits traits;
  if (const auto* prompt = std::get_if<std::string>(&input)) {
    traits.Add(*prompt);
  } else if (const auto* messages = std::get_if<std::vector<ChatMessage>>(&input)) {
    for (const ChatMessage& message : *messages) traits.Add(message.content);
  }
  return traits;
}

StatusOr<GateScorer> GateScorerOf(const FeatureScorer& scorer, const PromptTraits& prompt) {
  const FeatureInputs of_prompt = {.prompt = prompt};
  GateScorer out;
  out.bias = scorer.bias;
  for (const auto& [feature, weight, mean, scale] : scorer.features) {
    if (feature->source == FeatureSource::kPrompt) {
      out.bias += weight * (feature->value(of_prompt) - mean) / scale;
      continue;
    }
    const auto* const place = std::find(std::begin(kGateFeatures), std::end(kGateFeatures), feature->name);
    if (place == std::end(kGateFeatures))
      return Unimplemented("the router's gates do not look at ", feature->name);
    out.weights[static_cast<size_t>(place - std::begin(kGateFeatures))] = weight / scale;
    out.bias -= weight * mean / scale;
  }
  return out;
}

StatusOr<std::unique_ptr<TierPolicy>> MakeCalibratedPolicy(const Calibration& calibration,
                                                           std::span<const std::string> tiers, bool verifies,
                                                           std::vector<TierPrice> affinity_prices) {
  ASSIGN_OR_RETURN(std::vector<CalibratedTier> steps, FindCalibratedTiers(calibration, tiers));
  if (calibration.kind == CalibrationKind::kClassifier) {
    return std::unique_ptr<TierPolicy>(
        new CalibratedClassifier(calibration, std::move(steps), std::move(affinity_prices)));
  }
  return std::unique_ptr<TierPolicy>(new CalibratedCascade(calibration, std::move(steps), verifies));
}

}  // namespace terrace
