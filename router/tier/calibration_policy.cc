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
  CalibratedPolicy(Calibration calibration, std::vector<CalibratedTier> steps,
                   CalibratedPolicyOptions options)
      : calibration_(std::move(calibration)), steps_(std::move(steps)), options_(std::move(options)) {}

  StatusOr<TierPlan> Plan(const PlanQuery& query) const final {
    if (!IsStale(steps_, query.view)) return PlanFor(query);
    return TierPlan{.steps = {{.tier = steps_.back().tier}}, .reason = "fallback: stale calibration"};
  }

  Status Check(const ClusterView& view) const final { return CheckServed(calibration_, view); }

 protected:
  const std::vector<CalibratedTier>& steps() const { return steps_; }
  const CalibratedPolicyOptions& options() const { return options_; }

  // Of a step that has one.
  Gate GateOf(size_t step, const PromptTraits& traits, const HoldBudget& hold) const {
    const CalibratedGate& gate = *steps_[step].gate;
    return Gate(GateScorerOf(gate.scorer, traits).value(), gate.threshold, hold);
  }

  // Of a cascade's step; without bounds where none is set.
  HoldBudget HoldOf(size_t step) const {
    const auto found = options_.holds.find(calibration_.steps[step].tier);
    return found == options_.holds.end() ? HoldBudget() : found->second;
  }

  // The step whose tier is to be asked instead of that of `step`, for its cache; else `step`. So it is where
  // its tier cannot have the prompt: whether another can is the dispatcher's to find out.
  size_t AfterVeto(const PlanQuery& query, size_t step) const {
    if (options_.affinity_prices.empty()) return step;
    std::vector<size_t> larger;
    for (size_t i = step + 1; i < steps_.size(); ++i) larger.push_back(steps_[i].tier);
    const StatusOr<size_t> tier = VetoDowngrade(query, options_.affinity_prices, steps_[step].tier, larger);
    if (!tier.ok()) return step;
    return static_cast<size_t>(std::ranges::find(steps_, *tier, &CalibratedTier::tier) - steps_.begin());
  }

 private:
  virtual StatusOr<TierPlan> PlanFor(const PlanQuery& query) const = 0;

  const Calibration calibration_;
  const std::vector<CalibratedTier> steps_;
  const CalibratedPolicyOptions options_;
};

class CalibratedCascade : public CalibratedPolicy {
 public:
  using CalibratedPolicy::CalibratedPolicy;

 private:
  // Where a larger tier has more of the prompt, the smaller ones are left out; the others keep their gates.
  StatusOr<TierPlan> PlanFor(const PlanQuery& query) const override {
    const PromptTraits traits = TraitsOf(query.request.input());
    const size_t first = AfterVeto(query, 0);
    TierPlan plan{.reason = "cascade", .names_step = true, .is_measured = true};
    if (first > 0) plan = {.reason = "cache affinity"};
    for (size_t i = first; i < steps().size(); ++i) {
      PlanStep next{.tier = steps()[i].tier, .verifies = options().verifies && i > first};
      if (steps()[i].gate.has_value()) next.gate = GateOf(i, traits, HoldOf(i));
      plan.steps.push_back(std::move(next));
    }
    return plan;
  }
};

// By the prompt alone: one tier is asked.
class PromptClassifier : public CalibratedPolicy {
 public:
  using CalibratedPolicy::CalibratedPolicy;

 private:
  StatusOr<TierPlan> PlanFor(const PlanQuery& query) const override {
    const FeatureInputs inputs = {.prompt = TraitsOf(query.request.input())};
    const auto chosen = std::ranges::find_if(steps(), [&](const CalibratedTier& step) {
      return !step.gate.has_value() || step.gate->Accepts(inputs);  // the last one has none
    });
    const auto step = static_cast<size_t>(chosen - steps().begin());
    const size_t cached = AfterVeto(query, step);
    if (cached != step)
      return TierPlan{.steps = {{.tier = steps()[cached].tier}}, .reason = "cache affinity"};
    return TierPlan{.steps = {{.tier = chosen->tier}}, .reason = "classifier", .is_measured = true};
  }
};

// By the prompt and the first token of the first tier, which is asked and held: it goes on, or one of the
// others is asked with the token as a draft. The cache has its say before.
class FirstTokenClassifier : public CalibratedPolicy {
 public:
  using CalibratedPolicy::CalibratedPolicy;

 private:
  StatusOr<TierPlan> PlanFor(const PlanQuery& query) const override {
    const size_t cached = AfterVeto(query, 0);
    if (cached > 0) return TierPlan{.steps = {{.tier = steps()[cached].tier}}, .reason = "cache affinity"};
    const PromptTraits traits = TraitsOf(query.request.input());
    TierPlan plan{.reason = "classifier: first token", .is_measured = true, .chooses_by_first_token = true};
    for (size_t i = 0; i < steps().size(); ++i) {
      PlanStep next{.tier = steps()[i].tier, .verifies = options().verifies && i > 0};
      if (i == 0) {
        next.gate = GateOf(i, traits, {.tokens = 1, .is_final = true});
      } else if (steps()[i].gate.has_value()) {
        next.choice = GateOf(i, traits, {});
      }
      plan.steps.push_back(std::move(next));
    }
    return plan;
  }
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
    if (place == std::end(kGateFeatures)) return NotReadByGates(*feature);
    out.weights[static_cast<size_t>(place - std::begin(kGateFeatures))] = weight / scale;
    out.bias -= weight * mean / scale;
  }
  return out;
}

StatusOr<std::unique_ptr<TierPolicy>> MakeCalibratedPolicy(const Calibration& calibration,
                                                           std::span<const std::string> tiers,
                                                           CalibratedPolicyOptions options) {
  ASSIGN_OR_RETURN(std::vector<CalibratedTier> steps, FindCalibratedTiers(calibration, tiers));
  if (calibration.kind == CalibrationKind::kClassifier) {
    if (FindFirstTokenFeature(steps) != nullptr) {
      return std::unique_ptr<TierPolicy>(
          new FirstTokenClassifier(calibration, std::move(steps), std::move(options)));
    }
    return std::unique_ptr<TierPolicy>(
        new PromptClassifier(calibration, std::move(steps), std::move(options)));
  }
  return std::unique_ptr<TierPolicy>(
      new CalibratedCascade(calibration, std::move(steps), std::move(options)));
}

}  // namespace terrace
