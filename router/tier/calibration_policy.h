// The tier policy that a calibration describes.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "router/request/request.h"
#include "router/tier/calibration.h"
#include "router/tier/calibration_features.h"
#include "router/tier/gate.h"
#include "router/tier/price.h"
#include "router/tier/tier_policy.h"

namespace terrace {

// Of token ids none.
PromptTraits TraitsOf(const RequestInput& input);

// The same probability for every answer to one prompt, whose share goes into the bias. UNIMPLEMENTED names a
// feature that gates do not take.
StatusOr<GateScorer> GateScorerOf(const FeatureScorer& scorer, const PromptTraits& prompt);

struct CalibratedPolicyOptions {
  bool verifies = false;  // every step but the first (PlanStep)
  // Of all tiers: what is to be asked first yields to a larger tier's cache (VetoDowngrade); empty: it does
  // not.
  std::vector<TierPrice> affinity_prices = {};
  // By tier, of a cascade's that have a gate: the bounds are of the scorer's probability.
  std::map<std::string, HoldBudget> holds = {};
};

// A cascade with the calibration's gates; or of a classifier the one tier that its scorers choose, by the
// prompt or, where they look at the first token too, once the first tier has given one. `tiers`: the names of
// ClusterView::tiers, in order. Errors of FindCalibratedTiers.
StatusOr<std::unique_ptr<TierPolicy>> MakeCalibratedPolicy(const Calibration& calibration,
                                                           std::span<const std::string> tiers,
                                                           CalibratedPolicyOptions options = {});

}  // namespace terrace
