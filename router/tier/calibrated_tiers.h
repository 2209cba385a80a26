// A calibration's steps among the tiers that are served. Values; pure.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "router/cluster/cluster_view.h"
#include "router/tier/calibration.h"

namespace terrace {

struct CalibratedTier {
  size_t tier = 0;                                  // index into ClusterView::tiers
  std::string model_digest = {}, text_digest = {};  // of the model that was measured
  std::optional<CalibratedGate> gate = {};          // of all but the last
};

// `tiers`: the names of ClusterView::tiers, in order. FAILED_PRECONDITION for a tier that is not among them,
// or a feature of an answer in a classifier; UNIMPLEMENTED names a feature that the router's gates do not
// take.
StatusOr<std::vector<CalibratedTier>> FindCalibratedTiers(const Calibration& calibration,
                                                          std::span<const std::string> tiers);

// One that a scorer looks at and that needs the first token of an answer; null: there is none.
const ScoredFeature* FindFirstTokenFeature(std::span<const CalibratedTier> tiers);

// Whether one of them serves another model than was measured. Of a tier that was never ready nothing is
// known yet.
bool IsStale(std::span<const CalibratedTier> measured, const ClusterView& view);

// CheckCalibration of the tiers as they are.
Status CheckServed(const Calibration& calibration, const ClusterView& view);

}  // namespace terrace
