// The tier policy that a calibration describes.
#pragma once

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

// A cascade with the calibration's gates, or of a classifier the one tier that its scorers choose. `tiers`:
// the names of ClusterView::tiers, in order; `verifies`: of every step but the first (PlanStep);
// `affinity_prices`: of all tiers, where a classifier's choice yields to a larger tier's cache
// (VetoDowngrade). FAILED_PRECONDITION for a tier that is not among them, UNIMPLEMENTED as above.
StatusOr<std::unique_ptr<TierPolicy>> MakeCalibratedPolicy(const Calibration& calibration,
                                                           std::span<const std::string> tiers, bool verifies,
                                                           std::vector<TierPrice> affinity_prices = {});

}  // namespace terrace
