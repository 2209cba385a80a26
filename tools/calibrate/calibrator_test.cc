#include "tools/calibrate/calibrator.h"

#include <cmath>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "base/binomial.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/tier/testing_records.h"

namespace terrace {
namespace {

using testing::HasSubstr;

CalibratorOptions OptionsWith(std::initializer_list<const char*> names) {
  CalibratorOptions options{.policy = "auto", .data_digest = "d", .date = "2026-11-30", .version = "0"};
  for (const char* name : names) options.features.push_back(*FindFeature(name));
  return options;
}

CalibratorOptions ForCascade() { return OptionsWith({"mean_logprob", "min_margin", "mean_entropy"}); }

CalibratorOptions ForClassifier() {
  CalibratorOptions options = OptionsWith({"digit_share"});
  options.kind = CalibrationKind::kClassifier;
  return options;
}

TEST(Calibrator, IsTheSameForTheSameSeedAndComesBackFromItsFile) {
  const Records records = DrawRecords(400, /*seed=*/1), others = DrawRecords(500, /*seed=*/2);
  for (const CalibratorOptions& options : {ForCascade(), ForClassifier()}) {
    const auto one = Calibrate(records, options), other = Calibrate(records, options);
    ASSERT_TRUE(one.ok()) << one.status();
    const std::string text = CalibrationText(one->calibration);
    EXPECT_EQ(text, CalibrationText(other->calibration));
    const auto read = ParseCalibration(text);
    ASSERT_TRUE(read.ok()) << read.status();
    const auto tally = ApplyCalibration(one->calibration, others), same = ApplyCalibration(*read, others);
    ASSERT_TRUE(tally.ok() && same.ok());
    EXPECT_EQ(tally->answered_by, same->answered_by);
    EXPECT_EQ(tally->cost, same->cost);
  }
}

TEST(Calibrator, ChoosesTheCheapestOfTheSafeAndReportsIt) {
  for (const ScoreTarget target : {ScoreTarget::kRight, ScoreTarget::kNoWorse}) {
    CalibratorOptions options = ForCascade();
    options.target = target;
    const auto result = Calibrate(DrawRecords(600, /*seed=*/3), options);
    ASSERT_TRUE(result.ok()) << result.status();
    const TestedThresholds& chosen = result->candidates[result->chosen];
    EXPECT_TRUE(chosen.is_safe);
    for (const TestedThresholds& candidate : result->candidates) {
      EXPECT_LE(candidate.tally.losses / 300.0, candidate.loss_bound);
      if (!candidate.is_safe) continue;
      EXPECT_LE(candidate.loss_bound, options.limit.epsilon + 1e-9);
      EXPECT_GE(candidate.tally.cost, chosen.tally.cost);
    }
    const CalibrationEvidence& evidence = result->calibration.evidence;
    EXPECT_EQ(evidence.rows, 300u);
    EXPECT_EQ(evidence.fit_rows, 300u);
    EXPECT_EQ(evidence.losses, chosen.tally.losses);
    EXPECT_EQ(evidence.relative_cost, chosen.tally.relative_cost());
    EXPECT_LT(evidence.relative_cost, 0.8);
    EXPECT_GE(evidence.accuracy, evidence.last_tier_accuracy - options.limit.epsilon);
    EXPECT_EQ(result->calibration.steps[1].model_digest, "m1");
    for (const ScoreReport& report : result->scorers) EXPECT_GT(report.auc, 0.75);
  }
}

TEST(Calibrator, TheRateOfLossesOnNewRowsExceedsEpsilonAsRarelyAsItSays) {
  constexpr uint64_t kRuns = 30;
  const Records population = DrawRecords(5'000, /*seed=*/1'000'000);
  uint64_t exceeded = 0;
  for (uint64_t seed = 0; seed < kRuns; ++seed) {
    CalibratorOptions options = ForCascade();
    options.seed = seed;
    const auto result = Calibrate(DrawRecords(400, seed), options);
    ASSERT_TRUE(result.ok()) << "seed " << seed << ": " << result.status();
    const auto tally = ApplyCalibration(result->calibration, population);
    ASSERT_TRUE(tally.ok()) << tally.status();
    // Surely above epsilon, not just in these rows.
    exceeded += LowerRateBound(tally->losses, tally->rows, 1e-6) > options.limit.epsilon;
  }
  // If each run exceeds with probability delta, more than `most` of them do in one of a million tests.
  uint64_t most = 0;
  while (LogBinomialTail(most, kRuns, CalibratorOptions().limit.delta) < std::log1p(-1e-6)) ++most;
  EXPECT_LE(exceeded, most) << "seeds 0 to " << kRuns - 1;
}

TEST(Calibrator, AClassifierAsksOneTierAndPaysForTheFirstTokenIfItLooksAtIt) {
  const Records records = DrawRecords(400, /*seed=*/4);
  const auto by_prompt = Calibrate(records, ForClassifier());
  ASSERT_TRUE(by_prompt.ok()) << by_prompt.status();
  EXPECT_LT(by_prompt->calibration.evidence.relative_cost, 1);
  CalibratorOptions options = ForClassifier();
  options.features.push_back(*FindFeature("first_margin"));
  const auto by_first_token = Calibrate(records, options);
  ASSERT_TRUE(by_first_token.ok()) << by_first_token.status();
  // Where only the last tier answers, it costs that, and what was looked at.
  Calibration all_last = by_first_token->calibration;
  for (CalibratedStep& step : all_last.steps) {
    if (step.gate.has_value()) step.gate->threshold = 1;
  }
  const auto tally = ApplyCalibration(all_last, records);
  ASSERT_TRUE(tally.ok()) << tally.status();
  double looks = 0;
  for (const Record& record : records.rows) looks += 1000.0 * (record.answers[0].prompt_tokens + 1);
  EXPECT_DOUBLE_EQ(tally->cost, tally->last_tier_cost + looks);
}

TEST(Calibrator, WithoutASafeThresholdItSaysWhatTheRowsCouldShow) {
  CalibratorOptions options = ForCascade();
  options.limit.epsilon = 0.001;  // 200 rows without a loss show 0.0114 at best
  const Status status = Calibrate(DrawRecords(400, /*seed=*/5), options).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr(Concat("200 rows show, without any loss, a rate below ",
                                                UpperRateBound(0, 200, 0.1))));
}

TEST(Calibrator, WhatIsSafeAndSavesNothingIsRefused) {
  Records records = DrawRecords(400, /*seed=*/10);
  for (Record& record : records.rows) {  // only the last tier is ever right: every answer before it is a loss
    for (RecordedAnswer& answer : record.answers) answer.is_right = &answer == &record.answers.back();
  }
  const Status status = Calibrate(records, ForCascade()).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("ask that"));
}

TEST(Calibrator, WhatMakesNoSenseIsRefused) {
  const struct {
    const char* names;
    std::function<void(CalibratorOptions&)> change;
  } cases[] = {
      {"epsilon", [](auto& o) { o.limit.epsilon = 0; }},
      {"epsilon", [](auto& o) { o.limit.epsilon = 1; }},
      {"delta", [](auto& o) { o.limit.delta = std::nan(""); }},
      {"starts", [](auto& o) { o.limit.starts = 0; }},
      {"share", [](auto& o) { o.fit_share = 1; }},
      {"too few", [](auto& o) { o.fit_share = 0.01; }},
      {"classifier", [](auto& o) { o.kind = CalibrationKind::kClassifier; }},
  };
  const Records records = DrawRecords(100, /*seed=*/6);
  for (const auto& c : cases) {
    CalibratorOptions options = ForCascade();
    c.change(options);
    const Status status = Calibrate(records, options).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.names;
    EXPECT_THAT(Message(status), HasSubstr(c.names));
  }
}

TEST(ApplyCalibration, IsForTheTiersOfTheCalibrationOnly) {
  const auto result = Calibrate(DrawRecords(400, /*seed=*/7), ForCascade());
  ASSERT_TRUE(result.ok()) << result.status();
  Records others = DrawRecords(10, /*seed=*/8);
  others.tiers[1].name = "medium";
  EXPECT_EQ(ApplyCalibration(result->calibration, others).status().code(), StatusCode::kInvalidArgument);
}

TEST(ApplyLogprobThreshold, LetsTheFirstTierAnswerWhatIsAboveIt) {
  const Records records = DrawRecords(100, /*seed=*/9);
  const Tally all_first = ApplyLogprobThreshold(-1000, records), all_last = ApplyLogprobThreshold(0, records);
  EXPECT_EQ(all_first.answered_by, (std::vector<uint64_t>{100, 0, 0}));
  EXPECT_EQ(all_last.answered_by, (std::vector<uint64_t>{0, 0, 100}));
  EXPECT_EQ(all_last.losses, 0u);
  EXPECT_EQ(all_last.right, ApplyOracle(records).last_tier_right);
  EXPECT_GE(ApplyOracle(records).right, all_last.right);
}

}  // namespace
}  // namespace terrace
