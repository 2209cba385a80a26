#include "router/cluster/event_loop.h"

#include <future>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(EventLoop, RunsFunctionsInOrderOfTheirTime) {
  EventLoop loop;
  std::vector<int> order;
  std::promise<void> last;
  loop.Post([&] {  // All from the loop itself, so that nothing runs in between.
    loop.After(std::chrono::milliseconds(4), [&] { order.push_back(3), last.set_value(); });
    loop.After(std::chrono::milliseconds(2), [&] { order.push_back(2); });
    loop.Post([&] { order.push_back(1); });
    order.push_back(0);
  });
  last.get_future().wait();
  EXPECT_THAT(order, ::testing::ElementsAre(0, 1, 2, 3));
}

TEST(EventLoop, WhatHasNotRunWhenItStopsNeverDoes) {
  EventLoop loop;
  const auto alive = std::make_shared<int>(0);
  loop.After(std::chrono::hours(1), [alive] { FAIL(); });
  loop.Stop();
  loop.Post([alive] { FAIL(); });
  EXPECT_EQ(alive.use_count(), 1) << "and is not kept";
}

}  // namespace
}  // namespace terrace
