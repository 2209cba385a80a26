#include "router/dispatch/retry_budget.h"

#include <algorithm>
#include <vector>

#include "base/fake_clock.h"
#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::seconds;

class RetryBudgetTest : public ::testing::Test {
 protected:
  void Requests(int count) {
    for (int i = 0; i < count; ++i) budget_.OnRequest();
  }
  // How many of 1000 retries there may be now.
  int Retries() {
    int granted = 0;
    for (int i = 0; i < 1000; ++i) granted += budget_.TakeRetry() ? 1 : 0;
    return granted;
  }

  FakeClock clock_;
  RetryBudget budget_{/*ratio=*/0.1, clock_};
};

TEST_F(RetryBudgetTest, AFewRequestsHaveTenRetries) {
  EXPECT_EQ(Retries(), 10);
  Requests(100);
  EXPECT_EQ(Retries(), 0) << "a tenth of 100 is spent";
}

TEST_F(RetryBudgetTest, ManyRequestsHaveATenthAsManyRetries) {
  Requests(2345);
  EXPECT_EQ(Retries(), 234);
  Requests(100);
  EXPECT_EQ(Retries(), 10);
}

TEST_F(RetryBudgetTest, TenSecondsCount) {
  Requests(500);
  clock_.Advance(seconds(5));
  Requests(500);
  EXPECT_EQ(Retries(), 100);
  clock_.Advance(seconds(4));
  EXPECT_EQ(Retries(), 0);
  clock_.Advance(seconds(1));
  EXPECT_EQ(Retries(), 0) << "500 requests are left, and 100 retries";
  clock_.Advance(seconds(5));
  EXPECT_EQ(Retries(), 10) << "nothing is left";
}

TEST_F(RetryBudgetTest, NeverMoreThanTheRatioInAnyWindow) {
  struct Second {
    int requests = 0, retries = 0;
  };
  std::vector<Second> past;
  for (uint64_t second = 0; second < 500; ++second) {
    Second& now = past.emplace_back();
    const auto requests = static_cast<int>(RandomBits(/*seed=*/1, second) % 400);
    const auto wanted = static_cast<int>(RandomBits(/*seed=*/2, second) % 100);
    Requests(requests);
    now.requests = requests;
    for (int i = 0; i < wanted; ++i) now.retries += budget_.TakeRetry() ? 1 : 0;
    Second window;
    for (size_t i = past.size(); i > 0 && past.size() - i < 10; --i) {
      window.requests += past[i - 1].requests;
      window.retries += past[i - 1].retries;
    }
    ASSERT_TRUE(now.retries == 0 || window.retries <= std::max(10, window.requests / 10)) << second;
    clock_.Advance(seconds(1));
  }
}

}  // namespace
}  // namespace terrace
