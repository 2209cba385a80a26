#include "base/bounded_queue.h"

#include <memory>
#include <thread>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(BoundedQueue, RefusesWhenFullAndLeavesTheItemWithTheCaller) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  auto first = std::make_unique<int>(1), second = std::make_unique<int>(2);
  EXPECT_TRUE(queue.TryPush(std::move(first)));
  EXPECT_FALSE(queue.TryPush(std::move(second)));
  EXPECT_NE(second, nullptr);
}

TEST(BoundedQueue, DrainReturnsEveryItemOfEveryProducerInItsOrder) {
  BoundedQueue<std::pair<int, int>> queue(100000);
  std::vector<std::jthread> producers;
  for (int p = 0; p < 4; ++p) {
    producers.emplace_back([&queue, p] {
      for (int i = 0; i < 1000; ++i) EXPECT_TRUE(queue.TryPush({p, i}));
    });
  }
  int next[4] = {};
  for (int received = 0; received < 4000;) {
    for (const auto& [p, i] : queue.Drain({}, std::nullopt)) {
      EXPECT_EQ(i, next[p]++);
      ++received;
    }
  }
}

TEST(BoundedQueue, AWaitEndsByItselfOrByWake) {
  BoundedQueue<int> queue(4);
  EXPECT_TRUE(queue.Drain({}, Duration(0)).empty());
  EXPECT_TRUE(queue.Drain({}, std::chrono::microseconds(1)).empty());
  queue.Wake();
  EXPECT_TRUE(queue.Drain({}, std::nullopt).empty());
}

TEST(BoundedQueue, CloseWakesAWaitingConsumerAndRefusesItems) {
  BoundedQueue<int> queue(4);
  std::jthread closer([&] { queue.Close(); });
  EXPECT_TRUE(queue.Drain({}, std::nullopt).empty());
  EXPECT_FALSE(queue.TryPush(1));
}

}  // namespace
}  // namespace terrace
