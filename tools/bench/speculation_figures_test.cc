#include "tools/bench/speculation_figures.h"

#include "base/json.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(SpeculationFigures, WhatIsNotKnownIsNullAndNoNumber) {
  SpeculationFigures figures;
  EXPECT_TRUE(figures.empty());
  EXPECT_EQ(SpeculationToJson(figures),
            (Json{{"verified", 0}, {"accepted", 0}, {"acceptance", nullptr}, {"engine", nullptr}}));
  figures.Add(8, 2);
  figures.Add(2, 1);
  EXPECT_FALSE(figures.empty());
  EXPECT_EQ(SpeculationToJson(figures)["acceptance"], 0.3);
}

TEST(SpeculationFigures, AnEnginesAreByPlaceInTheDraft) {
  SpeculationFigures figures{.engine = SpeculationStats{.drafter = "ngram"}};
  EXPECT_FALSE(figures.empty()) << "it has a drafter, and nothing was drafted";
  SpeculationStats& stats = *figures.engine;
  stats.proposed[0] = 6, stats.proposed[4] = 2;
  stats.verified[0] = 4, stats.accepted[0] = 3;
  stats.verified[4] = 2;
  stats.branch_proposed = 5, stats.branch_verified = 4, stats.branch_accepted = 1;
  stats.passes = 2;
  stats.drafting_seconds = 0.5;
  stats.saved_seconds = -0.25;
  const Json engine = SpeculationToJson(figures)["engine"];
  EXPECT_EQ(engine["drafter"], "ngram");
  EXPECT_EQ(engine["failures"], 0);
  EXPECT_EQ(engine["passes"], 2);
  EXPECT_EQ(engine["tokens_per_pass"], 3);
  EXPECT_EQ(engine["branches"],
            (Json{{"proposed", 5}, {"verified", 4}, {"accepted", 1}, {"acceptance", 0.25}}));
  EXPECT_EQ(engine["proposed"], 6 + 2 + 5);
  EXPECT_EQ(engine["drafting_seconds"], 0.5);
  EXPECT_EQ(engine["saved_seconds"], -0.25);
  const Json& positions = engine["positions"];
  EXPECT_EQ(positions.size(), SpeculationStats::kPositions);
  EXPECT_EQ(positions["1"], (Json{{"proposed", 6}, {"verified", 4}, {"accepted", 3}, {"acceptance", 0.75}}));
  EXPECT_EQ(positions["5-8"]["acceptance"], 0);
  EXPECT_TRUE(positions["9+"]["acceptance"].is_null());
}

}  // namespace
}  // namespace terrace
