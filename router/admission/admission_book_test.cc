// Two configurations with one book, as around a reload. What one does alone is admission_test's.
#include "router/admission/admission_book.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fake_clock.h"
#include "gtest/gtest.h"
#include "router/admission/admission.h"

namespace terrace {
namespace {

using Tiers = std::vector<std::string>;
using Places = std::vector<uint32_t>;

class AdmissionBookTest : public ::testing::Test {
 protected:
  struct Outcome {
    std::optional<Admission::Ticket> ticket = {};
    Status error = {};
    bool is_waiting() const { return !ticket.has_value() && error.ok(); }
  };
  using OutcomePtr = std::shared_ptr<Outcome>;

  std::unique_ptr<Admission> Make(const AdmissionOptions& options, const Tiers& tiers) {
    return std::make_unique<Admission>(options, tiers, book_);
  }
  OutcomePtr Enter(Admission& admission, size_t pool = 0, const std::string& tenant = "a") {
    RequestFields fields;
    fields.request_id = "r";
    fields.input = std::vector<TokenId>(10, 1);
    fields.max_tokens = 10;
    fields.tenant = std::make_shared<Tenant>(Tenant{.name = tenant});
    fields.arrival = clock_.Now();
    fields.deadline = clock_.Now() + std::chrono::seconds(600);
    const auto outcome = std::make_shared<Outcome>();
    const RequestPtr request = *Request::Make(std::move(fields));
    admission.Enter(*request, pool, [outcome](StatusOr<Admission::Ticket> ticket) {
      if (ticket.ok()) {
        outcome->ticket = *std::move(ticket);
      } else {
        outcome->error = ticket.status();
      }
    });
    return outcome;
  }
  static void End(const OutcomePtr& outcome) { outcome->ticket.reset(); }

  FakeClock clock_;
  TenantLedger ledger_{clock_};
  AdmissionBook book_{ledger_, clock_};
};

TEST_F(AdmissionBookTest, WhatTheOldOneHasAtWorkTakesPlacesOfTheNewOne) {
  const auto old = Make({}, {"nano"});
  old->SetPlaces(Places{2});
  const auto first = Enter(*old);
  const auto fresh = Make({}, {"small", "nano"});  // another order
  fresh->TakeCharge();
  fresh->SetPlaces(Places{2, 2});
  const auto second = Enter(*fresh, 1), third = Enter(*fresh, 1);
  EXPECT_TRUE(second->ticket);
  EXPECT_TRUE(third->is_waiting());
  EXPECT_TRUE(Enter(*fresh, 0)->ticket) << "another tier";
  EXPECT_EQ(old->in_flight(), 1u);
  EXPECT_EQ(fresh->in_flight(), 2u);
  End(first);
  EXPECT_TRUE(third->ticket);
}

TEST_F(AdmissionBookTest, TheRoutersLimitIsOverBothTogether) {
  const auto old = Make({.max_in_flight = 2}, {"nano"});
  const auto first = Enter(*old);
  const auto fresh = Make({.max_in_flight = 2}, {"small"});
  fresh->TakeCharge();
  const auto second = Enter(*fresh), third = Enter(*fresh);
  EXPECT_TRUE(second->ticket);
  EXPECT_TRUE(third->is_waiting());
  End(first);
  EXPECT_TRUE(third->ticket);
}

TEST_F(AdmissionBookTest, NothingChangesBeforeTheNewOneIsInCharge) {
  const auto old = Make({.max_in_flight = 100}, {"nano"});
  old->SetPlaces(Places{1});
  const auto running = Enter(*old), waiting = Enter(*old);
  const auto fresh = Make({.max_in_flight = 1}, {"nano"});
  fresh->SetPlaces(Places{0});  // it knows no worker yet
  EXPECT_TRUE(waiting->is_waiting());
  old->SetPlaces(Places{2});
  EXPECT_TRUE(waiting->ticket) << "the old limit, and the old one's word";
  fresh->TakeCharge();
  fresh->SetPlaces(Places{10});
  old->SetPlaces(Places{0});
  const auto next = Enter(*old);
  EXPECT_TRUE(next->is_waiting()) << "the new limit";
  End(running);
  EXPECT_TRUE(next->is_waiting());
  End(waiting);
  EXPECT_TRUE(next->ticket);
}

TEST_F(AdmissionBookTest, OneThatNeverTakesChargeLeavesNoTrace) {
  const auto old = Make({}, {"nano"});
  old->SetPlaces(Places{1});
  Make({.max_in_flight = 1}, {"nano", "small"}).reset();
  EXPECT_EQ(book_.pools(), 1u);
  const auto running = Enter(*old), waiting = Enter(*old);
  EXPECT_TRUE(running->ticket);
  EXPECT_TRUE(waiting->is_waiting());
}

TEST_F(AdmissionBookTest, WhatWaitedUnderTheOldOneIsAdmittedInItsTurn) {
  auto old = Make({}, {"nano"});
  old->SetPlaces(Places{1});
  const auto running = Enter(*old), waiting = Enter(*old);
  const auto fresh = Make({}, {"nano"});
  fresh->TakeCharge();
  fresh->SetPlaces(Places{1});
  const auto later = Enter(*fresh);
  End(running);
  EXPECT_TRUE(waiting->ticket);
  EXPECT_TRUE(later->is_waiting());
  EXPECT_EQ(old->in_flight(), 1u);
  End(waiting);
  EXPECT_TRUE(later->ticket);
  EXPECT_EQ(old->in_flight(), 0u);
  old.reset();
  EXPECT_EQ(book_.pools(), 1u);
}

TEST_F(AdmissionBookTest, WhatATenantHasBeenServedIsRemembered) {
  const auto old = Make({}, {"nano"});
  old->SetPlaces(Places{1});
  auto running = Enter(*old, 0, "greedy");
  const auto waiting = Enter(*old, 0, "other");  // while somebody waits, what is served counts
  running->ticket->Charge(10, 100'000);
  const auto fresh = Make({}, {"nano"});
  fresh->TakeCharge();
  fresh->SetPlaces(Places{1});
  const auto more = Enter(*fresh, 0, "greedy"), others = Enter(*fresh, 0, "other");
  End(running);
  EXPECT_TRUE(waiting->ticket);
  End(waiting);
  EXPECT_TRUE(others->ticket) << "before the greedy one, who came first";
  EXPECT_TRUE(more->is_waiting());
}

TEST_F(AdmissionBookTest, HowFastATierIsOutlivesAReload) {
  const auto old = Make({}, {"nano", "small"});
  old->OnTokens(1, /*seconds=*/1, /*tokens=*/4);
  const auto next = Make({}, {"small"});
  EXPECT_EQ(next->seconds_per_token(0), 0.25);
}

TEST_F(AdmissionBookTest, ATierThatTheNewOneDoesNotHaveStaysInTheOldOnesCharge) {
  auto old = Make({}, {"nano", "small"});
  old->SetPlaces(Places{1, 1});
  const auto running = Enter(*old, 1), waiting = Enter(*old, 1);
  const auto fresh = Make({}, {"nano"});
  fresh->TakeCharge();
  old->SetPlaces(Places{1, 2});
  EXPECT_TRUE(waiting->ticket);
  End(running);
  End(waiting);
  old.reset();
  EXPECT_EQ(book_.pools(), 1u);
}

TEST_F(AdmissionBookTest, ATierWhoseLastOneInChargeHasGoneIsInTheChargeOfTheYoungestLeft) {
  const auto first = Make({}, {"nano", "small"});
  auto second = Make({}, {"nano", "small"});
  second->TakeCharge();
  second->SetPlaces(Places{1, 1});
  const auto running = Enter(*first, 1), waiting = Enter(*first, 1);
  ASSERT_TRUE(waiting->is_waiting());
  const auto third = Make({}, {"nano"});
  third->TakeCharge();
  third->SetPlaces(Places{1});
  first->SetPlaces(Places{9, 2});
  EXPECT_TRUE(waiting->is_waiting()) << "not yet";
  second.reset();
  first->SetPlaces(Places{9, 2});
  EXPECT_TRUE(waiting->ticket);
  const auto only = Enter(*third), next = Enter(*third);
  EXPECT_TRUE(only->ticket);
  EXPECT_TRUE(next->is_waiting()) << "the older one has no say of what the youngest has";
  End(only);
  End(next);
}

}  // namespace
}  // namespace terrace
