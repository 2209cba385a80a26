#include "router/admission/admission.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(Admission, RefusesWhenEveryPlaceIsTakenAndAdmitsAgainAfterOneIsGivenBack) {
  Admission admission(2);
  auto first = admission.Admit();
  {
    const auto second = admission.Admit();
    ASSERT_TRUE(first.ok() && second.ok());
    const auto third = admission.Admit();
    EXPECT_EQ(third.status().code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(Reason(third.status()), "overloaded");
    EXPECT_EQ(admission.in_flight(), 2u);
  }
  EXPECT_EQ(admission.in_flight(), 1u);
  EXPECT_TRUE(admission.Admit().ok());
}

TEST(Admission, AMovedTicketIsGivenBackOnce) {
  Admission admission(1);
  {
    auto ticket = admission.Admit();
    ASSERT_TRUE(ticket.ok());
    Admission::Ticket moved = *std::move(ticket);
    Admission::Ticket again;
    again = std::move(moved);
    EXPECT_EQ(admission.in_flight(), 1u);
  }
  EXPECT_EQ(admission.in_flight(), 0u);
}

TEST(Admission, RefusesEverythingOnceClosed) {
  Admission admission(8);
  admission.Close();
  EXPECT_EQ(Reason(admission.Admit().status()), "draining");
}

TEST(Admission, ThreadsNeverHoldMoreThanTheLimit) {
  Admission admission(3);
  std::atomic<int> held = 0, most = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 2000; ++i) {
          const auto ticket = admission.Admit();
          if (!ticket.ok()) continue;
          const int now = ++held;
          int seen = most;
          while (seen < now && !most.compare_exchange_weak(seen, now)) {
          }
          --held;
        }
      });
    }
  }
  EXPECT_LE(most, 3);
  EXPECT_EQ(admission.in_flight(), 0u);
}

}  // namespace
}  // namespace terrace
