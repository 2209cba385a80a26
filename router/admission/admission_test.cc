#include "router/admission/admission.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/fake_clock.h"
#include "base/retry_after.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class AdmissionTest : public ::testing::Test {
 protected:
  // What became of one request.
  struct Outcome {
    std::optional<Admission::Ticket> ticket = {};
    Status error = {};
    Admission::WaitId id = 0;
    bool is_waiting() const { return !ticket.has_value() && error.ok(); }
  };
  using OutcomePtr = std::shared_ptr<Outcome>;

  void Make(AdmissionOptions options, std::vector<uint32_t> places = {}) {
    const std::vector<std::string> tiers = {"nano", "small"};
    const size_t count = std::max<size_t>(places.size(), 1);
    admission_ = std::make_unique<Admission>(options, std::span(tiers).first(count), book_);
    if (!places.empty()) admission_->SetPlaces(places);
  }

  RequestPtr MakeRequest(Tenant tenant = {}, int64_t answers = 1, double timeout_seconds = 600) {
    RequestFields fields;
    fields.request_id = "r";
    fields.input = std::vector<TokenId>(10, 1);
    fields.max_tokens = 10;
    fields.choices = answers;
    fields.tenant = std::make_shared<Tenant>(std::move(tenant));
    fields.arrival = clock_.Now();
    fields.deadline =
        clock_.Now() + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(timeout_seconds));
    return *Request::Make(std::move(fields));
  }

  OutcomePtr Enter(const RequestPtr& request, size_t pool = 0) {
    const auto outcome = std::make_shared<Outcome>();
    outcome->id = admission_->Enter(*request, pool, [outcome](StatusOr<Admission::Ticket> ticket) {
      ASSERT_TRUE(outcome->is_waiting()) << "told twice";
      if (ticket.ok()) {
        outcome->ticket = *std::move(ticket);
      } else {
        outcome->error = ticket.status();
      }
    });
    return outcome;
  }
  OutcomePtr Enter() { return Enter(MakeRequest()); }
  static void End(const OutcomePtr& outcome) { outcome->ticket.reset(); }

  FakeClock clock_;
  TenantLedger ledger_{clock_};
  AdmissionBook book_{ledger_, clock_};
  std::unique_ptr<Admission> admission_;
};

TEST_F(AdmissionTest, RefusesWhenTheRouterIsFullAndAdmitsAgainAfterOneEnds) {
  Make({.max_in_flight = 2, .max_queued = 0});
  const auto first = Enter(), second = Enter(), third = Enter();
  EXPECT_TRUE(first->ticket && second->ticket);
  EXPECT_EQ(Reason(third->error), "overloaded");
  EXPECT_GE(RetryAfter(third->error).value_or(0), 1);
  EXPECT_EQ(admission_->in_flight(), 2u);
  End(first);
  EXPECT_EQ(admission_->in_flight(), 1u);
  EXPECT_TRUE(Enter()->ticket);
}

TEST_F(AdmissionTest, RefusesEverythingNewOnceClosedAndKeepsWhatWaits) {
  Make({}, {1});
  const auto running = Enter(), waiting = Enter();
  book_.Close();
  EXPECT_EQ(Reason(Enter()->error), "draining");
  EXPECT_TRUE(waiting->is_waiting());
  End(running);
  EXPECT_TRUE(waiting->ticket);
}

TEST_F(AdmissionTest, RefusesWhatWaitsInEveryPoolWhenItIsTold) {
  Make({}, {1, 1});
  const auto running = Enter(), waiting = Enter(), other = Enter(MakeRequest(), 1),
             others = Enter(MakeRequest(), 1);
  book_.Close();
  book_.RefuseWaiting();
  EXPECT_EQ(Reason(waiting->error), "draining");
  EXPECT_EQ(Reason(others->error), "draining");
  EXPECT_TRUE(running->ticket && other->ticket);
  EXPECT_EQ(admission_->queued(0) + admission_->queued(1), 0u);
  EXPECT_EQ(admission_->in_flight(), 2u);
  End(running);
  End(other);
  EXPECT_EQ(admission_->in_flight(), 0u);
}

TEST_F(AdmissionTest, WaitsWhileTheRouterIsFullWhateverThePool) {
  Make({.max_in_flight = 1}, {8, 8});
  const auto first = Enter(), other_pool = Enter(MakeRequest(), 1);
  EXPECT_TRUE(other_pool->is_waiting());
  End(first);
  EXPECT_TRUE(other_pool->ticket);
}

TEST_F(AdmissionTest, WaitsWhileThePoolIsFullAndPassesWhenAPlaceIsFree) {
  Make({}, {2, 1});
  const auto a = Enter(), b = Enter(), c = Enter(), d = Enter();
  EXPECT_TRUE(a->ticket && b->ticket);
  EXPECT_TRUE(c->is_waiting() && d->is_waiting());
  EXPECT_EQ(admission_->queued(0), 2u);
  EXPECT_TRUE(Enter(MakeRequest(), 1)->ticket) << "the other pool is free";
  End(b);
  EXPECT_TRUE(c->ticket);
  EXPECT_TRUE(d->is_waiting());
  admission_->SetPlaces(std::vector<uint32_t>{3, 1});
  EXPECT_TRUE(d->ticket);
}

TEST_F(AdmissionTest, APoolOfUnknownSizeHoldsNobodyUp) {
  Make({}, {1});
  const auto running = Enter(), waiting = Enter();
  ASSERT_TRUE(waiting->is_waiting());
  admission_->SetPlaces(std::vector<uint32_t>{0});
  EXPECT_TRUE(waiting->ticket);
}

TEST_F(AdmissionTest, EverySequenceTakesAPlaceAndGivesItBackWhereItEnded) {
  Make({}, {2, 1});
  const auto two = Enter(MakeRequest({}, 2)), waiting = Enter();
  ASSERT_TRUE(two->ticket);
  ASSERT_TRUE(waiting->is_waiting());
  two->ticket->Move(0, 1);  // one of them was escalated
  EXPECT_TRUE(waiting->ticket);
  const auto second_pool = Enter(MakeRequest(), 1);
  EXPECT_TRUE(second_pool->is_waiting());
  two->ticket->Leave(1);
  EXPECT_TRUE(second_pool->ticket);
  const auto last = Enter();
  EXPECT_TRUE(last->is_waiting());
  End(two);
  EXPECT_TRUE(last->ticket);
}

TEST_F(AdmissionTest, WhatIsCancelledWhileItWaitsIsToldSoAndTakesNoPlace) {
  Make({}, {1});
  const auto running = Enter(), gone = Enter(), next = Enter();
  admission_->Cancel(gone->id);
  EXPECT_EQ(gone->error.code(), StatusCode::kCancelled);
  admission_->Cancel(gone->id);
  admission_->Cancel(running->id);  // it does not wait
  End(running);
  EXPECT_TRUE(next->ticket);
  EXPECT_EQ(admission_->in_flight(), 1u);
}

TEST_F(AdmissionTest, WhoWaitsTooLongIsRefusedWithTheReason) {
  Make({.max_first_token = seconds(10)}, {1});
  const auto running = Enter();
  const auto patient = Enter();
  const auto hurried = Enter(MakeRequest({}, 1, /*timeout_seconds=*/5));
  clock_.Advance(seconds(6));
  admission_->Expire();
  EXPECT_EQ(Reason(hurried->error), "deadline_exceeded");
  EXPECT_TRUE(patient->is_waiting());
  clock_.Advance(seconds(5));
  admission_->Expire();
  EXPECT_EQ(Reason(patient->error), "overloaded");
  EXPECT_EQ(admission_->in_flight(), 1u);
}

TEST_F(AdmissionTest, TheQueueHasALimit) {
  Make({.max_queued = 2}, {1});
  const auto a = Enter(), b = Enter(), c = Enter(), d = Enter();
  EXPECT_TRUE(b->is_waiting() && c->is_waiting());
  EXPECT_EQ(Reason(d->error), "overloaded");
  EXPECT_EQ(Reason(admission_->Peek(*MakeRequest(), 0)), "overloaded");
}

TEST_F(AdmissionTest, InAFullQueueTheTenantWithTheMostGivesWay) {
  Make({.max_queued = 3}, {1});
  const Tenant flood{.name = "flood"}, quiet{.name = "quiet"};
  const auto running = Enter(MakeRequest(flood));
  const auto a = Enter(MakeRequest(flood)), b = Enter(MakeRequest(flood)), c = Enter(MakeRequest(flood));
  EXPECT_EQ(Reason(Enter(MakeRequest(flood))->error), "overloaded");
  EXPECT_TRUE(admission_->Peek(*MakeRequest(quiet), 0).ok());
  const auto one = Enter(MakeRequest(quiet));
  EXPECT_TRUE(one->is_waiting());
  EXPECT_EQ(Reason(c->error), "overloaded");
  EXPECT_TRUE(a->is_waiting() && b->is_waiting());
  EXPECT_EQ(Reason(Enter(MakeRequest(quiet))->error), "overloaded") << "it would have as many";
}

// The one that makes another give way counts itself once.
TEST_F(AdmissionTest, WhoGivesWayIsOutOfTheQueueAndNobodyElse) {
  Make({.max_queued = 4}, {1});
  const Tenant most{.name = "most"}, fewer{.name = "fewer"};
  auto running = Enter(MakeRequest(most));
  std::vector<OutcomePtr> waiting;
  for (int i = 0; i < 3; ++i) waiting.push_back(Enter(MakeRequest(most)));
  for (int i = 0; i < 2; ++i) waiting.push_back(Enter(MakeRequest(fewer)));
  EXPECT_EQ(admission_->queued(0), 4u);
  EXPECT_EQ(Reason(waiting[2]->error), "overloaded");
  waiting.erase(waiting.begin() + 2);
  for (size_t i = 0; i < waiting.size(); ++i) {
    End(running);
    const auto next = std::ranges::find_if(waiting, [](const auto& one) { return one->ticket.has_value(); });
    ASSERT_NE(next, waiting.end());
    running = *next;
  }
  End(running);
  EXPECT_EQ(admission_->in_flight(), 0u);
}

TEST_F(AdmissionTest, AFloodOfOneTierKeepsNobodyFromWaitingForAnother) {
  Make({.max_queued = 2}, {1, 1});
  std::vector<OutcomePtr> all;
  for (size_t pool = 0; pool < 2; ++pool) {
    for (int i = 0; i < 3; ++i) all.push_back(Enter(MakeRequest(), pool));
  }
  for (const OutcomePtr& one : all) EXPECT_TRUE(one->error.ok());
  EXPECT_EQ(Reason(Enter(MakeRequest(), 1)->error), "overloaded");
}

TEST_F(AdmissionTest, TiersTakeTurnsWhenTheRouterItselfIsFull) {
  Make({.max_in_flight = 1}, {10, 10});
  auto running = Enter(MakeRequest(), 0);
  std::vector<OutcomePtr> waiting;
  for (size_t i = 0; i < 8; ++i) waiting.push_back(Enter(MakeRequest(), i % 2));
  size_t served[2] = {};
  for (int i = 0; i < 4; ++i) {
    End(running);
    for (size_t k = 0; k < waiting.size(); ++k) {
      if (!waiting[k]->ticket.has_value()) continue;
      running = waiting[k];
      ++served[k % 2];
    }
  }
  EXPECT_EQ(served[0], 2u);
  EXPECT_EQ(served[1], 2u);
}

// Whoever passes while nobody waits is charged as much as whoever waits: a busy past is no debt.
TEST_F(AdmissionTest, AnswersLongerThanExpectedWhileNobodyWaitsStarveNobodyLater) {
  Make({}, {1});
  const Tenant old{.name = "old"}, fresh{.name = "fresh"};
  for (int i = 0; i < 1000; ++i) {
    const auto passing = Enter(MakeRequest(old));
    ASSERT_TRUE(passing->ticket);
    passing->ticket->Charge(10, 40);
    End(passing);
  }
  auto running = Enter(MakeRequest(fresh));
  std::vector<OutcomePtr> waiting;
  for (int i = 0; i < 20; ++i) waiting.push_back(Enter(MakeRequest(i % 2 == 0 ? fresh : old)));
  int served_of_old = 0;
  for (int i = 0; i < 10; ++i) {
    End(running);
    const auto next = std::ranges::find_if(waiting, [](const auto& one) { return one->ticket.has_value(); });
    ASSERT_NE(next, waiting.end());
    served_of_old += (next - waiting.begin()) % 2;
    running = *next;
  }
  EXPECT_NEAR(served_of_old, 5, 2) << "what is still owed is of the last one";
}

TEST_F(AdmissionTest, ALargeRequestIsNotRefusedForItsOwnSize) {
  Make({.max_first_token = seconds(10)}, {1});
  auto running = Enter();
  std::vector<OutcomePtr> waiting;
  for (int i = 0; i < 12; ++i) waiting.push_back(Enter());
  for (int i = 0; i < 11; ++i) {
    clock_.Advance(milliseconds(500));
    End(running);
    running = waiting[i];
    ASSERT_TRUE(running->ticket);
  }
  EXPECT_TRUE(Enter(MakeRequest({}, 16))->is_waiting());
}

TEST_F(AdmissionTest, ATenantsLimitIsAnotherErrorThanTheClusters) {
  Make({}, {8});
  const Tenant tenant{.name = "a", .max_in_flight = 1};
  const auto first = Enter(MakeRequest(tenant)), second = Enter(MakeRequest(tenant));
  EXPECT_TRUE(first->ticket);
  EXPECT_EQ(Reason(second->error), "rate_limit_exceeded");
  EXPECT_TRUE(Enter()->ticket) << "other tenants";
  End(first);
  EXPECT_TRUE(Enter(MakeRequest(tenant))->ticket);
}

TEST_F(AdmissionTest, WhatAsksNoWorkerTakesNoPlaceAndCountsForItsTenant) {
  Make({}, {1});
  const auto running = Enter();
  const Tenant tenant{.name = "a", .requests_per_minute = 2};
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(admission_->EnterAside(*MakeRequest(tenant)).ok());
  EXPECT_EQ(Reason(admission_->EnterAside(*MakeRequest(tenant)).status()), "rate_limit_exceeded");
  book_.Close();
  EXPECT_EQ(Reason(admission_->EnterAside(*MakeRequest()).status()), "draining");
}

TEST_F(AdmissionTest, WhatIsChargedAtTheEndCountsAgainstTheTenant) {
  Make({});
  const Tenant tenant{.name = "a", .tokens_per_minute = 60};
  auto first = Enter(MakeRequest(tenant));
  first->ticket->Charge(50, 70);
  End(first);
  const auto second = Enter(MakeRequest(tenant));
  EXPECT_EQ(Reason(second->error), "rate_limit_exceeded");
  EXPECT_NEAR(RetryAfter(second->error).value_or(0), 61, 1e-6);
}

TEST_F(AdmissionTest, ARefusedWaiterCostsItsTenantNothing) {
  Make({.max_first_token = seconds(1)}, {1});
  const Tenant tenant{.name = "a", .tokens_per_minute = 20};
  const auto running = Enter();
  for (int i = 0; i < 10; ++i) {
    const auto waiting = Enter(MakeRequest(tenant));
    ASSERT_TRUE(waiting->is_waiting()) << Message(waiting->error);
    clock_.Advance(milliseconds(1001));
    admission_->Expire();
    ASSERT_EQ(Reason(waiting->error), "overloaded");
  }
}

// Open load of twice what the pool serves: the queue stays as short as the bound asks, nearly all that is
// admitted has its first token in time, and the pool never idles.
TEST_F(AdmissionTest, AtTwiceTheLoadWhatIsAdmittedIsInTimeAndThePoolIsBusy) {
  constexpr int kPlaces = 4, kServiceSteps = 100, kArrivalSteps = 12;  // of 10 ms: 4 a second against 8.3
  Make({.max_first_token = seconds(5)}, {kPlaces});
  struct Running {
    OutcomePtr outcome;
    int ends = 0;
  };
  std::vector<std::pair<OutcomePtr, MonoTime>> waiting;
  std::vector<Running> running;
  int served = 0, refused = 0, late = 0, idle_steps = 0;
  constexpr int kSteps = 60'000;
  for (int step = 0; step < kSteps; ++step) {
    std::erase_if(running, [&](Running& one) {
      if (one.ends > step) return false;
      one.outcome->ticket->Charge(10, 10);
      End(one.outcome);
      ++served;
      return true;
    });
    if (step % kArrivalSteps == 0) waiting.emplace_back(Enter(), clock_.Now());
    admission_->Expire();
    std::erase_if(waiting, [&](const auto& one) {
      if (one.first->is_waiting()) return false;
      if (!one.first->ticket.has_value()) return ++refused > 0;
      one.first->ticket->OnFirstToken();
      if (clock_.Now() - one.second > seconds(5)) ++late;
      running.push_back({one.first, step + kServiceSteps});
      return true;
    });
    if (step > 1000 && running.size() < kPlaces) ++idle_steps;
    clock_.Advance(milliseconds(10));
  }
  EXPECT_GE(served, 0.98 * kSteps / kServiceSteps * kPlaces);
  EXPECT_EQ(late, 0);
  EXPECT_NEAR(refused, kSteps / kArrivalSteps - served, 60);
  EXPECT_LE(idle_steps, kSteps / 50);
}

TEST_F(AdmissionTest, AWaitThatIsForeseeablyTooLongIsRefusedAtOnce) {
  Make({.max_first_token = seconds(10)}, {1});
  auto running = Enter();
  std::vector<OutcomePtr> waiting;
  for (int i = 0; i < 12; ++i) waiting.push_back(Enter());
  for (int i = 0; i < 9; ++i) {  // one a second
    clock_.Advance(milliseconds(500));
    End(running);
    running = waiting[i];
    ASSERT_TRUE(running->ticket);
  }
  std::vector<OutcomePtr> more;
  while (more.empty() || more.back()->is_waiting()) more.push_back(Enter());
  EXPECT_EQ(Reason(more.back()->error), "overloaded");
  EXPECT_GE(RetryAfter(more.back()->error).value_or(0), 1);
  EXPECT_NEAR(static_cast<double>(admission_->queued(0)), 0.8 * 10 / 0.5, 2);
}

TEST_F(AdmissionTest, WhatAnAnswerTakesIsKnownFromWhatWasSeenLately) {
  Make({}, {1, 1});
  const auto speed = [&](size_t pool) { return admission_->SpeedsFor(*MakeRequest())[pool]; };
  ASSERT_EQ(admission_->SpeedsFor(*MakeRequest()).size(), 2u);
  EXPECT_FALSE(speed(0).first_token_seconds.has_value() || speed(0).seconds_per_token.has_value());
  for (int i = 0; i < 200; ++i) {
    const auto running = Enter();
    clock_.Advance(milliseconds(100));
    running->ticket->OnFirstToken();
    End(running);
  }
  admission_->OnTokens(0, /*seconds=*/2, /*tokens=*/4);
  EXPECT_NEAR(speed(0).first_token_seconds.value_or(0), 0.1, 1e-3);
  EXPECT_EQ(speed(0).seconds_per_token, 0.5);
  EXPECT_EQ(admission_->seconds_per_token(0), 0.5);
  EXPECT_FALSE(speed(1).first_token_seconds.has_value() || speed(1).seconds_per_token.has_value());
  clock_.Advance(kSpeedRemembered);
  EXPECT_FALSE(speed(0).first_token_seconds.has_value() || speed(0).seconds_per_token.has_value());
}

TEST_F(AdmissionTest, TheTimeToAFirstTokenHasTheWaitForAPlace) {
  Make({}, {1});
  auto running = Enter();
  std::vector<OutcomePtr> waiting;
  for (int i = 0; i < 12; ++i) waiting.push_back(Enter());
  for (size_t i = 0; i < 9; ++i) {  // 20 tokens in half a second
    clock_.Advance(milliseconds(500));
    End(running);
    running = waiting[i];
    ASSERT_TRUE(running->ticket);
  }
  EXPECT_NEAR(admission_->SpeedsFor(*MakeRequest())[0].first_token_seconds.value_or(0), 3 * 0.5, 0.01);
}

TEST_F(AdmissionTest, ManyThreadsNeverHoldMoreThanThereArePlaces) {
  Make({.max_in_flight = 1000}, {3});
  std::atomic<int> held = 0, most = 0, told = 0;
  constexpr int kThreads = 4, kEach = 2000;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        const RequestPtr request = MakeRequest();
        for (int i = 0; i < kEach; ++i) {
          const auto id = admission_->Enter(*request, 0, [&](StatusOr<Admission::Ticket> ticket) {
            ++told;
            if (!ticket.ok()) return;
            const int now = ++held;
            int seen = most;
            while (seen < now && !most.compare_exchange_weak(seen, now)) {
            }
            --held;
          });
          if (i % 3 == 0) admission_->Cancel(id);
        }
      });
    }
  }
  EXPECT_LE(most, 3);
  EXPECT_EQ(told, kThreads * kEach);
  EXPECT_EQ(admission_->in_flight(), 0u);
}

}  // namespace
}  // namespace terrace
