#include "router/admission/tenant_ledger.h"

#include <vector>

#include "base/fake_clock.h"
#include "base/retry_after.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class TenantLedgerTest : public ::testing::Test {
 protected:
  static TenantPtr Make(Tenant tenant) { return std::make_shared<Tenant>(std::move(tenant)); }
  void ExpectRefused(const TenantPtr& tenant, double retry_seconds) {
    const auto refused = ledger_.Enter(tenant, 1);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(Reason(refused.status()), "rate_limit_exceeded");
    EXPECT_NEAR(RetryAfter(refused.status()).value_or(-1), retry_seconds, 1e-6);
  }

  FakeClock clock_;
  TenantLedger ledger_{clock_};
};

TEST_F(TenantLedgerTest, WithoutLimitsEverythingPasses) {
  std::vector<TenantLedger::Lease> leases;
  for (int i = 0; i < 1000; ++i) {
    auto lease = ledger_.Enter(DefaultTenant(), 1'000'000);
    ASSERT_TRUE(lease.ok());
    leases.push_back(*std::move(lease));
  }
}

TEST_F(TenantLedgerTest, APlaceIsGivenBackWithTheLease) {
  const TenantPtr tenant = Make({.name = "a", .max_in_flight = 1});
  {
    const auto lease = ledger_.Enter(tenant, 1);
    ASSERT_TRUE(lease.ok());
    ExpectRefused(tenant, 1);
    EXPECT_TRUE(ledger_.Enter(Make({.name = "b", .max_in_flight = 1}), 1).ok()) << "another tenant's";
  }
  EXPECT_TRUE(ledger_.Enter(tenant, 1).ok());
}

TEST_F(TenantLedgerTest, AMinutesRequestsMayComeAtOnceAndThenOneByOne) {
  const TenantPtr tenant = Make({.name = "a", .requests_per_minute = 30});
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(ledger_.Enter(tenant, 1).ok()) << i;
  ExpectRefused(tenant, 2);
  clock_.Advance(milliseconds(1500));
  ExpectRefused(tenant, 0.5);
  clock_.Advance(milliseconds(500));
  EXPECT_TRUE(ledger_.Enter(tenant, 1).ok());
  ExpectRefused(tenant, 2);
}

TEST_F(TenantLedgerTest, TokensAreChargedAsTheyTurnOutToBe) {
  const TenantPtr tenant = Make({.name = "a", .tokens_per_minute = 60});
  auto lease = ledger_.Enter(tenant, 10);
  ASSERT_TRUE(lease.ok());
  lease->Charge(90);  // 30 more than there were
  ExpectRefused(tenant, 31);
  clock_.Advance(seconds(31));
  EXPECT_TRUE(ledger_.Enter(tenant, 50).ok());
}

TEST_F(TenantLedgerTest, WhatWasNotUsedIsGivenBack) {
  const TenantPtr tenant = Make({.name = "a", .tokens_per_minute = 60});
  for (int i = 0; i < 100; ++i) {
    auto lease = ledger_.Enter(tenant, 60);
    ASSERT_TRUE(lease.ok()) << i;
    lease->Charge(0);
  }
}

TEST_F(TenantLedgerTest, OverTimeNoMoreIsUsedThanTheLimitAndOneRequest) {
  const TenantPtr tenant = Make({.name = "a", .tokens_per_minute = 600});
  double used = 0;
  for (int second = 0; second < 600; ++second) {
    if (auto lease = ledger_.Enter(tenant, 5); lease.ok()) {
      lease->Charge(100);
      used += 100;
    }
    clock_.Advance(seconds(1));
  }
  EXPECT_LE(used, 600 * 11 + 100);
  EXPECT_GE(used, 600 * 10);
}

TEST_F(TenantLedgerTest, AReloadedLimitCountsFromThenOnAndKeepsWhatIsInFlight) {
  const auto lease = ledger_.Enter(Make({.name = "a", .requests_per_minute = 1, .max_in_flight = 2}), 1);
  ASSERT_TRUE(lease.ok());
  ExpectRefused(Make({.name = "a", .requests_per_minute = 1, .max_in_flight = 2}), 60);
  const auto more = ledger_.Enter(Make({.name = "a", .requests_per_minute = 2, .max_in_flight = 2}), 1);
  EXPECT_TRUE(more.ok());
  ExpectRefused(Make({.name = "a", .max_in_flight = 2}), 1);
  EXPECT_TRUE(ledger_.Enter(Make({.name = "a"}), 1).ok());
}

TEST_F(TenantLedgerTest, ATenantSeesWhatIsLeftOfItsLimits) {
  const TenantPtr tenant = Make({.name = "a", .requests_per_minute = 60, .tokens_per_minute = 600});
  const RateLimits fresh = ledger_.LimitsOf(*tenant);
  EXPECT_EQ(fresh.requests->limit, 60u);
  EXPECT_EQ(fresh.requests->remaining, 60u);
  EXPECT_EQ(fresh.requests->reset_seconds, 0);
  auto lease = ledger_.Enter(tenant, 10);
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(ledger_.LimitsOf(*tenant).tokens->remaining, 590u) << "as it is expected to cost";
  lease->Charge(100);
  const RateLimits used = ledger_.LimitsOf(*tenant);
  EXPECT_EQ(used.requests->remaining, 59u);
  EXPECT_NEAR(used.requests->reset_seconds, 1, 1e-6);
  EXPECT_EQ(used.tokens->limit, 600u);
  EXPECT_EQ(used.tokens->remaining, 500u);
  EXPECT_NEAR(used.tokens->reset_seconds, 10, 1e-6);
  auto second = ledger_.Enter(tenant, 10);
  ASSERT_TRUE(second.ok());
  second->Charge(1000);
  EXPECT_EQ(ledger_.LimitsOf(*tenant).tokens->remaining, 0u) << "never below";
}

TEST_F(TenantLedgerTest, WhoLooksByTheLimitsBeforeAReloadChangesNothing) {
  const TenantPtr old = Make({.name = "a", .requests_per_minute = 1, .tokens_per_minute = 10});
  const TenantPtr fresh = Make({.name = "a", .requests_per_minute = 2, .tokens_per_minute = 100});
  const auto first = ledger_.Enter(fresh, 40), second = ledger_.Enter(fresh, 10);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(ledger_.LimitsOf(*old).requests->limit, 1u);
  EXPECT_TRUE(ledger_.Peek(*old).ok());
  const RateLimits left = ledger_.LimitsOf(*fresh);
  EXPECT_EQ(left.requests->remaining, 0u);
  EXPECT_EQ(left.tokens->remaining, 50u);
  EXPECT_FALSE(ledger_.Peek(*fresh).ok());
  ExpectRefused(fresh, 30);
}

TEST_F(TenantLedgerTest, LimitsThatThereAreNotAreNotSeen) {
  EXPECT_FALSE(ledger_.LimitsOf(*DefaultTenant()).requests.has_value());
  const RateLimits tokens = ledger_.LimitsOf(*Make({.name = "b", .tokens_per_minute = 0.5}));
  EXPECT_FALSE(tokens.requests.has_value());
  EXPECT_EQ(tokens.tokens->limit, 1u);
  EXPECT_EQ(tokens.tokens->remaining, 1u);
}

}  // namespace
}  // namespace terrace
