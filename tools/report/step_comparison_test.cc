#include "tools/report/step_comparison.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

StepComparisonOptions Options(const std::string& after) {
  StepComparisonOptions options;
  options.before.model = "models/terrace-demo-nano";
  options.before.threads = 1;
  options.before.device = "cpu";
  options.after = options.before;
  options.after.model = after;
  options.batches = {1, 3};
  options.least_seconds = 0;
  return options;
}

TEST(CompareSteps, MeasuresEachBatch) {
  const auto steps = CompareSteps(Options("models/terrace-demo-base"));
  ASSERT_TRUE(steps.ok()) << steps.status();
  ASSERT_EQ(steps->size(), 2u);
  EXPECT_EQ((*steps)[0].batch, 1u);
  EXPECT_EQ((*steps)[1].batch, 3u);
  for (const ComparedSteps& each : *steps) {
    EXPECT_GT(each.before_seconds, 0);
    EXPECT_GT(each.after_seconds, 0);
    EXPECT_GT(each.ratio, 0);
  }
}

// One round is measured of models that are too large for more.
TEST(CompareSteps, EndsAfterItsTimeWithFewerRounds) {
  StepComparisonOptions options = Options("models/terrace-demo-nano");
  options.least_rounds = 1'000'000'000;
  options.most_seconds = 0;
  const auto steps = CompareSteps(options);
  ASSERT_TRUE(steps.ok()) << steps.status();
  EXPECT_GT(steps->front().ratio, 0);
}

TEST(CompareSteps, WhatCannotBeOpenedOrRunIsAnError) {
  EXPECT_EQ(CompareSteps(Options("/absent")).status().code(), StatusCode::kNotFound);
  StepComparisonOptions longer = Options("models/terrace-demo-nano");
  longer.answer_tokens = 100'000;
  EXPECT_FALSE(CompareSteps(longer).ok());
  StepComparisonOptions interrupted = Options("models/terrace-demo-nano");
  interrupted.least_seconds = 3600;
  int asked = 0;
  interrupted.before.is_cancelled = [&asked] { return ++asked > 100; };
  EXPECT_EQ(CompareSteps(interrupted).status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace terrace
