#include "tools/calibrate/choices.h"

#include <algorithm>
#include <vector>

#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

std::vector<Choice> DrawChoices(size_t rows, size_t tiers, uint64_t seed) {
  std::vector<Choice> choices;
  uint64_t draw = 0;
  for (size_t row = 0; row < rows; ++row) {
    Choice choice;
    double cost = 0;
    for (size_t tier = 0; tier < tiers; ++tier) {
      cost += static_cast<double>(tier + 1) * (1 + RandomUniform(seed, draw++));
      choice.costs.push_back(cost);
      choice.is_right.push_back(RandomUniform(seed, draw++) < 0.6);
      if (tier + 1 < tiers) choice.scores.push_back(RandomUniform(seed, draw++));
    }
    choice.last_tier_cost = cost / 2;
    choices.push_back(choice);
  }
  return choices;
}

TEST(Decide, TheFirstTierAboveItsThresholdAnswersElseTheLast) {
  const Choice choice = {
      .scores = {0.3, 0.6}, .is_right = {false, true, true}, .costs = {1, 3, 9}, .last_tier_cost = 6};
  const struct {
    Thresholds thresholds;
    size_t answers;
  } cases[] = {{{0.2, 0.2}, 0}, {{0.3, 0.5}, 1}, {{0.4, 0.6}, 2}, {{1, 1}, 2}};
  for (const auto& c : cases) {
    const Tally tally = Decide({&choice, 1}, c.thresholds);
    EXPECT_EQ(tally.answered_by[c.answers], 1u);
    EXPECT_EQ(tally.right, choice.is_right[c.answers] ? 1u : 0u);
    EXPECT_EQ(tally.losses, c.answers == 0 ? 1u : 0u);
    EXPECT_EQ(tally.cost, choice.costs[c.answers]);
    EXPECT_EQ(tally.relative_cost(), choice.costs[c.answers] / 6);
    EXPECT_EQ(tally.last_tier_accuracy(), 1);
  }
}

TEST(DecideByOracle, IsRightWhereAnyTierIsAndCostsNoMoreThanAnyThresholdsThatAre) {
  const auto choices = DrawChoices(50, 3, /*seed=*/1);
  const auto any_right = std::count_if(choices.begin(), choices.end(), [](const Choice& choice) {
    return std::find(choice.is_right.begin(), choice.is_right.end(), true) != choice.is_right.end();
  });
  const Tally oracle = DecideByOracle(choices);
  EXPECT_EQ(oracle.right, static_cast<uint64_t>(any_right));
  EXPECT_EQ(oracle.losses, 0u);
  for (const double threshold : {0.0, 0.3, 0.7, 1.0}) {
    const Tally tally = Decide(choices, {threshold, threshold});
    EXPECT_LE(tally.right, oracle.right);
    EXPECT_EQ(tally.rows, oracle.rows);
  }
}

TEST(SafestFirst, IsTheParetoFrontOfAllThresholds) {
  for (const uint64_t seed : {1u, 2u, 3u}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const auto choices =
        DrawChoices(8, 3, seed);  // few: every score is on the grid, and no point is left out
    const auto front = SafestFirst(choices);
    ASSERT_FALSE(front.empty());
    ASSERT_LT(front.size(), kMaxCandidates);
    std::vector<Tally> tallies;
    for (const Thresholds& thresholds : front) tallies.push_back(Decide(choices, thresholds));
    for (size_t i = 1; i < tallies.size(); ++i) {
      EXPECT_LT(tallies[i - 1].expected_losses, tallies[i].expected_losses);
      EXPECT_GT(tallies[i - 1].cost, tallies[i].cost);
    }
    EXPECT_EQ(tallies.front().answered_by.back(), choices.size());
    std::vector<double> first = {1}, second = {1};
    for (const Choice& choice : choices) {
      first.push_back(choice.scores[0]);
      second.push_back(choice.scores[1]);
    }
    for (const double a : first) {
      for (const double b : second) {
        const Tally any = Decide(choices, {a, b});
        EXPECT_TRUE(std::any_of(tallies.begin(), tallies.end(),
                                [&](const Tally& of_front) {
                                  return of_front.expected_losses <= any.expected_losses &&
                                         of_front.cost <= any.cost;
                                }))
            << a << ", " << b;
      }
    }
  }
}

TEST(SafestFirst, OfManyTiersOrRowsItIsStillBounded) {
  for (const size_t tiers : {2u, 4u, 6u}) {
    const auto front = SafestFirst(DrawChoices(100, tiers, /*seed=*/4));
    EXPECT_LE(front.size(), kMaxCandidates);
    EXPECT_EQ(front.front(), Thresholds(tiers - 1, 1.0)) << "nothing is above 1";
    for (const Thresholds& thresholds : front) EXPECT_EQ(thresholds.size(), tiers - 1);
  }
}

}  // namespace
}  // namespace terrace
