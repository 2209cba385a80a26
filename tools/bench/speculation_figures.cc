#include "tools/bench/speculation_figures.h"

#include "base/json.h"

namespace terrace {
namespace {

Json TokensToJson(uint64_t verified, uint64_t accepted) {
  return {{"verified", verified},
          {"accepted", accepted},
          {"acceptance", OrNull(AcceptedShare(verified, accepted))}};
}

// The same with what the drafter gave.
Json TokensToJson(uint64_t proposed, uint64_t verified, uint64_t accepted) {
  Json json = TokensToJson(verified, accepted);
  json["proposed"] = proposed;
  return json;
}

}  // namespace

Json SpeculationToJson(const SpeculationFigures& figures) {
  Json json = TokensToJson(figures.verified, figures.accepted);
  Json& engine = json["engine"] = nullptr;
  if (!figures.engine.has_value()) return json;
  const SpeculationStats& stats = *figures.engine;
  engine = {{"drafter", stats.drafter},
            {"failures", stats.failures},
            {"passes", stats.passes},
            {"tokens_per_pass", stats.tokens_per_pass()},
            {"drafting_seconds", stats.drafting_seconds},
            {"saved_seconds", stats.saved_seconds},
            {"proposed", SpeculationStats::Sum(stats.proposed) + stats.branch_proposed},
            {"branches", TokensToJson(stats.branch_proposed, stats.branch_verified, stats.branch_accepted)},
            {"positions", Json::object()}};
  for (size_t i = 0; i < SpeculationStats::kPositions; ++i) {
    engine["positions"][SpeculationStats::kPositionNames[i]] =
        TokensToJson(stats.proposed[i], stats.verified[i], stats.accepted[i]);
  }
  return json;
}

}  // namespace terrace
