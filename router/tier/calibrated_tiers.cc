#include "router/tier/calibrated_tiers.h"

#include <algorithm>

namespace terrace {
namespace {

// Whether the router can do what the gate asks for.
Status CheckGate(const FeatureScorer& scorer, CalibrationKind kind) {
  for (const ScoredFeature& each : scorer.features) {
    if (kind == CalibrationKind::kClassifier && !IsKnownEarly(*each.feature)) {
      return FailedPrecondition("feature ", each.feature->name,
                                " is of an answer, which a classifier does not wait for");
    }
    if (!IsReadByGates(*each.feature)) return NotReadByGates(*each.feature);
  }
  return {};
}

}  // namespace

const ScoredFeature* FindFirstTokenFeature(std::span<const CalibratedTier> tiers) {
  for (const CalibratedTier& tier : tiers) {
    if (!tier.gate.has_value()) continue;
    for (const ScoredFeature& each : tier.gate->scorer.features) {
      if (each.feature->source == FeatureSource::kFirstToken) return &each;
    }
  }
  return nullptr;
}

StatusOr<std::vector<CalibratedTier>> FindCalibratedTiers(const Calibration& calibration,
                                                          std::span<const std::string> tiers) {
  std::vector<CalibratedTier> out;
  for (const CalibratedStep& step : calibration.steps) {
    const auto tier = std::find(tiers.begin(), tiers.end(), step.tier);
    if (tier == tiers.end())
      return FailedPrecondition("the calibration's tier ", step.tier, " is not served");
    if (step.gate.has_value()) RETURN_IF_ERROR(CheckGate(step.gate->scorer, calibration.kind));
    out.push_back({.tier = static_cast<size_t>(tier - tiers.begin()),
                   .model_digest = step.model_digest,
                   .text_digest = step.text_digest,
                   .gate = step.gate});
  }
  CHECK(!out.empty() && !out.back().gate.has_value());
  return out;
}

bool IsStale(std::span<const CalibratedTier> measured, const ClusterView& view) {
  return std::ranges::any_of(measured, [&](const CalibratedTier& each) {
    const TierView& tier = view.tiers[each.tier];
    return !tier.model_digest.empty() &&
           (tier.model_digest != each.model_digest || tier.text_digest != each.text_digest);
  });
}

Status CheckServed(const Calibration& calibration, const ClusterView& view) {
  std::vector<ServedTier> served;
  for (const TierView& tier : view.tiers) served.push_back({tier.name, tier.model_digest, tier.text_digest});
  return CheckCalibration(calibration, served);
}

}  // namespace terrace
