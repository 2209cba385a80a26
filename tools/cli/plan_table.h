// Plans for people. Pure.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "tools/bench/level_result.h"
#include "tools/plan/plan.h"

namespace terrace {

// A table, then the reasons for and against each.
std::string FormatPlans(std::span<const PlanCandidate> candidates, std::span<const PlannedServing> plans);

// What was predicted against what was measured, each with the relative error.
std::string FormatVerification(const ServingPrediction& predicted, const LevelResult& measured);

// Below it: which limits measured figures break, in words as of BrokenFigures.
std::string FormatMeasuredConstraints(const std::vector<std::string>& broken);

}  // namespace terrace
