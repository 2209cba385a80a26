#include "worker/speculative/probe_savings.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ProbeSavings, AShareOfTheTimeOfStepsMayBeSpentOnce) {
  ProbeSavings savings(0.01);
  EXPECT_FALSE(savings.Pay(0.001));
  for (int step = 0; step < 100; ++step) savings.Earn(0.5);
  EXPECT_FALSE(savings.Pay(0.51));
  EXPECT_TRUE(savings.Pay(0.3)) << "what was refused was not paid";
  EXPECT_FALSE(savings.Pay(0.3));
  EXPECT_TRUE(savings.Pay(0.19));
}

TEST(ProbeSavings, NoMoreThanSomeStepsWorthIsSavedUp) {
  ProbeSavings savings(0.5);
  for (int step = 0; step < 1000; ++step) savings.Earn(1);
  EXPECT_FALSE(savings.Pay(ProbeSavings::kMostSteps + 0.001));
  EXPECT_TRUE(savings.Pay(ProbeSavings::kMostSteps));
}

TEST(ProbeSavings, WhatIsThereStaysWhenStepsBecomeShorter) {
  ProbeSavings savings(0.5);
  for (int step = 0; step < 1000; ++step) savings.Earn(1);
  for (int step = 0; step < 1000; ++step) savings.Earn(0.001);
  EXPECT_TRUE(savings.Pay(ProbeSavings::kMostSteps));
  for (int step = 0; step < 1000; ++step) savings.Earn(0.001);
  EXPECT_FALSE(savings.Pay(ProbeSavings::kMostSteps * 0.001 + 1e-6)) << "but no more comes to it";
}

}  // namespace
}  // namespace terrace
