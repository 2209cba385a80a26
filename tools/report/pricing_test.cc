#include "tools/report/pricing.h"

#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::Each;
using testing::ElementsAre;

TEST(PriceOfTokens, IsTheHourOverTheTokensOfAnHourAtTheFastestBatch) {
  const BatchSpeed speeds[] = {
      {.batch = 1, .prefill_tokens_per_second = 4000, .decode_tokens_per_second = 100},
      {.batch = 8, .prefill_tokens_per_second = 2000, .decode_tokens_per_second = 500},
      {.batch = 16, .prefill_tokens_per_second = 9000, .decode_tokens_per_second = 400}};
  const TokenPrice price = PriceOfTokens(/*usd_per_hour=*/3.6, speeds);
  EXPECT_DOUBLE_EQ(price.usd_per_million_prompt_tokens, 3.6 / (2000 * 3600) * 1e6);
  EXPECT_DOUBLE_EQ(price.usd_per_million_completion_tokens, 3.6 / (500 * 3600) * 1e6);
  EXPECT_DOUBLE_EQ(PriceOfTokens(7.2, speeds).usd_per_million_prompt_tokens,
                   2 * price.usd_per_million_prompt_tokens);
}

TierAnswer AnswerOf(uint32_t prompt, uint32_t completion, double mean_logprob) {
  return {.prompt_tokens = prompt, .completion_tokens = completion, .mean_logprob = mean_logprob};
}

TEST(CombineAnswers, EveryTierThatWasAskedIsPaidAndTheKeptAnswerCounts) {
  const TierAnswer small[] = {AnswerOf(10, 2, -0.1), AnswerOf(20, 3, -0.5), AnswerOf(30, 0, 0)};
  const TierAnswer large[] = {AnswerOf(10, 5, -0.2), AnswerOf(20, 6, -2), AnswerOf(30, 7, -3)};
  const CascadeTier tiers[] = {{.price = {1, 10}, .answers = small}, {.price = {2, 20}, .answers = large}};
  const PricedAnswers out = CombineAnswers(tiers, /*min_mean_logprob=*/-0.3);
  EXPECT_THAT(out.tiers, ElementsAre(0, 1, 1)) << "an answer of no tokens is sure of nothing";
  EXPECT_EQ(out.prompt_tokens, 60u);
  EXPECT_EQ(out.completion_tokens, 2u + 6 + 7);
  const double usd = (60 + 5 * 10 + 50 * 2 + 13 * 20) / 1e6;  // small's three answers, large's last two
  EXPECT_DOUBLE_EQ(out.price.usd_per_thousand_answers, usd / 3 * 1e3);
  EXPECT_DOUBLE_EQ(out.price.usd_per_million_tokens, usd / 75 * 1e6);
}

TEST(CombineAnswers, TheThresholdItselfIsNotAboveIt) {
  const TierAnswer small[] = {AnswerOf(1, 1, -0.25)}, large[] = {AnswerOf(1, 1, -1)};
  const CascadeTier tiers[] = {{.answers = small}, {.answers = large}};
  EXPECT_THAT(CombineAnswers(tiers, -0.25).tiers, ElementsAre(1));
  EXPECT_THAT(CombineAnswers(tiers, -0.2500001).tiers, ElementsAre(0));
}

TEST(CombineAnswers, OneTierIsThatTier) {
  const TierAnswer only[] = {AnswerOf(10, 2, -9), AnswerOf(20, 4, -9)};
  const CascadeTier tier{.price = {3, 5}, .answers = only};
  const PricedAnswers out = CombineAnswers({&tier, 1}, 0);
  EXPECT_THAT(out.tiers, Each(0u));
  EXPECT_EQ(out.price.tokens.usd_per_million_completion_tokens, 5);
  EXPECT_DOUBLE_EQ(out.price.usd_per_thousand_answers, (30 * 3 + 6 * 5) / 1e6 / 2 * 1e3);
}

TEST(CombineAnswers, AHigherThresholdNeverCostsLess) {
  std::mt19937 random(7);
  std::vector<TierAnswer> answers[3];
  for (auto& tier : answers) {
    for (int row = 0; row < 50; ++row)
      tier.push_back(
          AnswerOf(1 + random() % 100, random() % 30, -static_cast<double>(random() % 1000) / 250));
  }
  std::vector<CascadeTier> tiers;
  for (const auto& tier : answers) tiers.push_back({.price = {1.0 + tiers.size(), 4}, .answers = tier});
  double last = 0;
  for (double threshold = -5; threshold <= 0; threshold += 0.25) {
    const double price = CombineAnswers(tiers, threshold).price.usd_per_thousand_answers;
    EXPECT_GE(price, last) << threshold;
    last = price;
  }
}

}  // namespace
}  // namespace terrace
