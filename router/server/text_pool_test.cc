#include "router/server/text_pool.h"

#include <atomic>
#include <future>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(TextPool, EveryTaskRunsOnceAlsoThoseThatWaitAtTheEnd) {
  std::atomic<int> ran = 0;
  {
    TextPool pool(3, 1000);
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(pool.Post([&ran] { ++ran; }));
  }
  EXPECT_EQ(ran, 1000);
}

TEST(TextPool, RefusesWhenTooManyWaitAndCountsWhatIsThere) {
  std::promise<void> begun, go;
  TextPool pool(1, 2);
  ASSERT_TRUE(pool.Post([&] {
    begun.set_value();
    go.get_future().wait();
  }));
  begun.get_future().wait();
  EXPECT_TRUE(pool.Post([] {}));
  EXPECT_TRUE(pool.Post([] {}));
  EXPECT_FALSE(pool.Post([] {}));
  EXPECT_EQ(pool.size(), 3u);
  go.set_value();
}

}  // namespace
}  // namespace terrace
