#include "router/tier/drift.h"

#include <cmath>

#include "base/binomial.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(Agreement, IsOfTheTextOrElseOfTheLeadingTokens) {
  EXPECT_EQ(Agreement(/*is_same_text=*/true, 0, 9), 1);
  EXPECT_EQ(Agreement(false, 3, 12), 0.25);
  EXPECT_EQ(Agreement(false, 0, 0), 1) << "two answers of nothing";
}

TEST(DriftWindow, DriftsWhenTheExactBoundOnTheRateIsAboveWhatIsAllowed) {
  const ShadowOptions options{.max_disagreement = 0.1, .window = 1000, .delta = 0.01};
  DriftWindow window(options);
  for (size_t i = 0; i < 200; ++i) {
    window.Add(i % 4 == 0 ? 0.2 : 1);  // a quarter disagrees
    const double bound = LowerRateBound(window.disagreements(), window.pairs(), options.delta);
    if (std::abs(bound - options.max_disagreement) < 1e-9) continue;
    EXPECT_EQ(window.has_drifted(), bound > options.max_disagreement) << i;
  }
  EXPECT_TRUE(window.has_drifted());
  EXPECT_EQ(window.agreement(), 0.75);
}

TEST(DriftWindow, AsManyAsAreAllowedAreNoDrift) {
  DriftWindow window({.max_disagreement = 0.25, .window = 1000});
  for (size_t i = 0; i < 1000; ++i) window.Add(i % 4 == 3 ? 0 : 1);
  EXPECT_FALSE(window.has_drifted());
}

TEST(DriftWindow, LooksAtTheLastPairsAlone) {
  DriftWindow window({.max_disagreement = 0.1, .window = 10});
  EXPECT_EQ(window.agreement(), 1);
  for (size_t i = 0; i < 10; ++i) EXPECT_FALSE(window.Add(0));
  EXPECT_TRUE(window.has_drifted());
  for (size_t i = 0; i < 10; ++i) EXPECT_TRUE(window.Add(1));
  EXPECT_EQ(window.pairs(), 10u);
  EXPECT_EQ(window.disagreements(), 0u);
  EXPECT_FALSE(window.has_drifted());
}

TEST(DriftWindow, APairAgreesFromItsLeastAgreementOn) {
  DriftWindow window({.min_agreement = 0.5});
  EXPECT_TRUE(window.Add(0.5));
  EXPECT_FALSE(window.Add(0.49));
}

TEST(DriftWindow, WhereNothingMayDisagreeOnePairIsDriftAndWhereAllMayNoneIs) {
  DriftWindow strict({.max_disagreement = 0}), lax({.max_disagreement = 1});
  for (DriftWindow* window : {&strict, &lax}) window->Add(0);
  EXPECT_TRUE(strict.has_drifted());
  EXPECT_FALSE(lax.has_drifted());
}

}  // namespace
}  // namespace terrace
