#include "tools/calibrate/scorer.h"

#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

std::vector<const Feature*> FeaturesOf(std::initializer_list<const char*> names) {
  std::vector<const Feature*> features;
  for (const char* name : names) features.push_back(*FindFeature(name));
  return features;
}

// An answer is right with a probability that rises with its mean log-probability; its margin says nothing.
double TrueProbability(const FeatureInputs& inputs) { return Sigmoid(4 + 8 * inputs.answer.mean_logprob); }

std::vector<ScorerExample> DrawExamples(size_t count, uint64_t seed) {
  std::vector<ScorerExample> examples;
  for (size_t i = 0; i < count; ++i) {
    ScorerExample example;
    example.inputs.answer.tokens = 5;
    example.inputs.answer.mean_logprob = -RandomUniform(seed, 3 * i);
    example.inputs.answer.mean_margin = 10 * RandomUniform(seed, 3 * i + 1);
    example.is_right = RandomUniform(seed, 3 * i + 2) < TrueProbability(example.inputs);
    examples.push_back(example);
  }
  return examples;
}

TEST(FitScorer, LearnsWhatMattersAndIgnoresWhatDoesNot) {
  const ScorerOptions options{.features = FeaturesOf({"mean_logprob", "mean_margin", "digit_share"})};
  const auto fitted = FitScorer(DrawExamples(4000, /*seed=*/1), options);
  ASSERT_TRUE(fitted.ok()) << fitted.status();
  const auto& features = fitted->scorer.features;
  EXPECT_GT(features[0].weight, 10 * std::abs(features[1].weight));
  EXPECT_EQ(features[2].scale, 1) << "always the same";
  EXPECT_NEAR(features[2].weight, 0, 1e-9);
  // 4000 rows know a share to about 1 / sqrt(4000) = 0.016; the worst of many is a few of those away.
  for (const ScorerExample& example : DrawExamples(200, /*seed=*/2))
    EXPECT_NEAR(fitted->scorer.Probability(example.inputs), TrueProbability(example.inputs), 0.08);
}

TEST(FitScorer, IsTheSameForTheSameSeedAndHasNotSeenWhatIsHeldOut) {
  const auto examples = DrawExamples(200, /*seed=*/3);
  const ScorerOptions options{.features = FeaturesOf({"mean_logprob", "mean_margin"}), .seed = 9};
  const auto one = FitScorer(examples, options), other = FitScorer(examples, options);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->held_out, other->held_out);
  EXPECT_EQ(one->scorer.bias, other->scorer.bias);
  // An example's label moves the probability of all others but those of its fold, as long as the penalty is
  // the same.
  size_t compared = 0;
  for (size_t flipped = 0; flipped < 10; ++flipped) {
    auto changed = examples;
    changed[flipped].is_right = !changed[flipped].is_right;
    const auto after = FitScorer(changed, options);
    if (after->l2 != one->l2) continue;
    ++compared;
    size_t same = 0;
    for (size_t i = 0; i < examples.size(); ++i) same += after->held_out[i] == one->held_out[i];
    EXPECT_EQ(same, examples.size() / options.folds) << flipped;
    EXPECT_EQ(after->held_out[flipped], one->held_out[flipped]) << flipped;
  }
  EXPECT_GT(compared, 0u);
}

TEST(FitScorer, RefusesTooFewExamplesAndValuesThatAreNoNumbers) {
  const ScorerOptions options{.features = FeaturesOf({"mean_logprob"})};
  EXPECT_EQ(FitScorer(DrawExamples(9, 1), options).status().code(), StatusCode::kInvalidArgument);
  auto examples = DrawExamples(20, 1);
  examples[7].inputs.answer.mean_logprob = std::numeric_limits<double>::quiet_NaN();
  const Status status = FitScorer(examples, options).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), testing::HasSubstr("example 7: mean_logprob"));
}

std::vector<ScoredLabel> DrawScored(size_t count, uint64_t seed) {
  std::vector<ScoredLabel> scored;
  for (size_t i = 0; i < count; ++i) {
    const double p = std::floor(8 * RandomUniform(seed, 2 * i)) / 8;  // with ties
    scored.push_back({p, RandomUniform(seed, 2 * i + 1) < p});
  }
  return scored;
}

TEST(ScoreReport, AucIsTheShareOfPairsInTheRightOrder) {
  for (const uint64_t seed : {1u, 2u, 3u}) {
    const auto scored = DrawScored(60, seed);
    double pairs = 0, in_order = 0;
    for (const ScoredLabel& right : scored) {
      for (const ScoredLabel& wrong : scored) {
        if (!right.is_right || wrong.is_right) continue;
        pairs += 1;
        in_order += right.probability > wrong.probability    ? 1
                    : right.probability == wrong.probability ? 0.5
                                                             : 0;
      }
    }
    EXPECT_NEAR(ReportOn(scored).auc, in_order / pairs, 1e-12) << "seed " << seed;
  }
  EXPECT_EQ(ReportOn({}).auc, 0.5);
}

TEST(ScoreReport, LossesAreThoseOfTheDefinitionAndLeastForTheTruth) {
  const auto scored = DrawScored(3000, /*seed=*/4);
  const ScoreReport report = ReportOn(scored);
  for (const double shift : {-0.1, 0.1}) {
    auto shifted = scored;
    for (ScoredLabel& each : shifted)
      each.probability += shift * (1 - each.probability) * each.probability * 4;
    EXPECT_LT(report.brier, ReportOn(shifted).brier) << shift;
    EXPECT_LT(report.log_loss, ReportOn(shifted).log_loss) << shift;
  }
  const std::vector<ScoredLabel> even = {{0.5, true}, {0.5, false}};
  EXPECT_DOUBLE_EQ(ReportOn(even).log_loss, std::log(2));
  EXPECT_DOUBLE_EQ(ReportOn(even).brier, 0.25);
}

TEST(ScoreReport, BinsHaveAllRowsInOrder) {
  const auto scored = DrawScored(97, /*seed=*/5);
  const ScoreReport report = ReportOn(scored, 10);
  ASSERT_EQ(report.bins.size(), 10u);
  size_t rows = 0;
  double right = 0, most = 0;
  for (const ScoreReport::Bin& bin : report.bins) {
    rows += bin.rows;
    right += bin.right * static_cast<double>(bin.rows);
    EXPECT_LE(most, bin.least);
    EXPECT_LE(bin.least, bin.mean + 1e-12);
    EXPECT_LE(bin.mean, bin.most + 1e-12);
    most = bin.most;
  }
  EXPECT_EQ(rows, scored.size());
  double want = 0;
  for (const ScoredLabel& each : scored) want += each.is_right;
  EXPECT_NEAR(right, want, 1e-9);
}

}  // namespace
}  // namespace terrace
