// The plan of one request: what its model's policy makes of it, within what the request asks for itself.
// Pure.
#pragma once

#include "base/status.h"
#include "router/tier/model_catalog.h"
#include "router/tier/tier_policy.h"

namespace terrace {

// The request's tier alone, when it names one; else the policy's last tier alone, when its smaller ones have
// drifted from that; else the policy's plan. Of that, when the request limits its price or its time, the
// steps whose costs (CostAt) fit in it together, from the first one on: a draft is the first to be left out,
// and the last step that is left accepts every answer. A step before the last one that cannot have the prompt
// costs nothing, as it is never asked. Of a plan that chooses by the first token all steps are counted,
// though one at most is asked after the first; where the first is left out, the last of the others answers.
//
// `entry` is one of the catalog's, which has the tiers of the view. INVALID_ARGUMENT for a tier that is none
// of the entry's (invalid_value) and where nothing fits (budget_too_small), PERMISSION_DENIED
// (model_not_allowed) for one that the tenant may not use, and errors of TierPolicy::Plan.
StatusOr<TierPlan> PlanRequest(const ModelCatalog& catalog, const CatalogEntry& entry, bool has_drifted,
                               const PlanQuery& query);

}  // namespace terrace
