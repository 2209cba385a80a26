#include "router/tier/calibration_policy.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace terrace {
namespace {

// The features of GateScorer::weights.
constexpr std::string_view kGateFeatures[GateScorer::kSignals] = {
    "mean_logprob", "min_logprob",  "first_logprob", "log_answer_tokens", "mean_margin",
    "min_margin",   "first_margin", "mean_entropy",  "first_entropy"};

struct Step {
  size_t tier = 0;
  std::string model_digest = {}, text_digest = {};  // of the model that was measured
  std::optional<CalibratedGate> gate = {};          // of all but the last
};

// While a tier serves another model than was measured, the last one answers alone.
class CalibratedPolicy : public TierPolicy {
 public:
  CalibratedPolicy(Calibration calibration, std::vector<Step> steps)
      : calibration_(std::move(calibration)), steps_(std::move(steps)) {}

  std::vector<PlanStep> Plan(const Request& request, const ClusterView& view) const final {
    if (std::ranges::any_of(steps_, [&](const Step& step) { return IsAnother(step, view.tiers[step.tier]); }))
      return {{.tier = steps_.back().tier}};
    return PlanFor(TraitsOf(request.input()));
  }

  Status Check(const ClusterView& view) const final {
    std::vector<ServedTier> served;
    for (const TierView& tier : view.tiers)
      served.push_back({tier.name, tier.model_digest, tier.text_digest});
    return CheckCalibration(calibration_, served);
  }

 protected:
  const std::vector<Step>& steps() const { return steps_; }

 private:
  virtual std::vector<PlanStep> PlanFor(const PromptTraits& traits) const = 0;

  // Of a tier that was never ready nothing is known yet.
  static bool IsAnother(const Step& step, const TierView& tier) {
    return !tier.model_digest.empty() &&
           (tier.model_digest != step.model_digest || tier.text_digest != step.text_digest);
  }

  const Calibration calibration_;
  const std::vector<Step> steps_;
};

class CalibratedCascade : public CalibratedPolicy {
 public:
  CalibratedCascade(Calibration calibration, std::vector<Step> steps, bool verifies)
      : CalibratedPolicy(std::move(calibration), std::move(steps)), verifies_(verifies) {}

 private:
  std::vector<PlanStep> PlanFor(const PromptTraits& traits) const override {
    std::vector<PlanStep> plan;
    for (const Step& step : steps()) {
      PlanStep next{.tier = step.tier, .verifies = verifies_ && !plan.empty()};
      if (step.gate.has_value())
        next.gate = Gate(GateScorerOf(step.gate->scorer, traits).value(), step.gate->threshold);
      plan.push_back(std::move(next));
    }
    return plan;
  }

  const bool verifies_;
};

class CalibratedClassifier : public CalibratedPolicy {
 public:
  using CalibratedPolicy::CalibratedPolicy;

 private:
  std::vector<PlanStep> PlanFor(const PromptTraits& traits) const override {
    const FeatureInputs inputs = {.prompt = traits};
    const auto chosen = std::ranges::find_if(steps(), [&](const Step& step) {
      return !step.gate.has_value() || step.gate->Accepts(inputs);  // the last one has none
    });
    return {{.tier = chosen->tier}};
  }
};

// Whether the router can do what the gate asks for.
Status CheckGate(const FeatureScorer& scorer, CalibrationKind kind) {
  RETURN_IF_ERROR(GateScorerOf(scorer, {}).status());
  for (const ScoredFeature& each : scorer.features) {
    if (kind == CalibrationKind::kClassifier && each.feature->source != FeatureSource::kPrompt)
      return Unimplemented("a classifier that waits for the first token (", each.feature->name, ")");
  }
  return {};
}

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
                                                           std::span<const std::string> tiers,
                                                           bool verifies) {
  std::vector<Step> steps;
  for (const CalibratedStep& step : calibration.steps) {
    const auto tier = std::find(tiers.begin(), tiers.end(), step.tier);
    if (tier == tiers.end())
      return FailedPrecondition("the calibration's tier ", step.tier, " is not served");
    if (step.gate.has_value()) RETURN_IF_ERROR(CheckGate(step.gate->scorer, calibration.kind));
    steps.push_back({.tier = static_cast<size_t>(tier - tiers.begin()),
                     .model_digest = step.model_digest,
                     .text_digest = step.text_digest,
                     .gate = step.gate});
  }
  CHECK(!steps.empty() && !steps.back().gate.has_value());
  if (calibration.kind == CalibrationKind::kClassifier)
    return std::unique_ptr<TierPolicy>(new CalibratedClassifier(calibration, std::move(steps)));
  return std::unique_ptr<TierPolicy>(new CalibratedCascade(calibration, std::move(steps), verifies));
}

}  // namespace terrace
