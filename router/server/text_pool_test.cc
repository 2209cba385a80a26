#include "router/server/text_pool.h"

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "gmock/gmock.h"

namespace terrace {
namespace {

using testing::ElementsAre;

TEST(TextPool, EveryTaskRunsOnceAlsoThoseThatWaitAtTheEnd) {
  std::atomic<int> ran = 0;
  {
    TextPool pool(3, 1000);
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(pool.Post(std::to_string(i % 7), [&ran] { ++ran; }));
  }
  EXPECT_EQ(ran, 1000);
}

// A pool of one thread that a task holds until Go.
class HeldPool {
 public:
  explicit HeldPool(size_t max_waiting) : pool_(std::make_unique<TextPool>(1, max_waiting)) {
    CHECK(pool_->Post("holder", [this] {
      begun_.set_value();
      go_.get_future().wait();
    }));
    begun_.get_future().wait();
  }
  ~HeldPool() { RunAll(); }
  bool Post(const std::string& tenant) {
    return pool_->Post(tenant, [this, tenant] { ran_.push_back(tenant); });
  }
  void SetMaxWaiting(size_t max_waiting) { pool_->SetMaxWaiting(max_waiting); }
  size_t size() const { return pool_->size(); }
  const std::vector<std::string>& RunAll() {
    if (pool_ != nullptr) go_.set_value();
    pool_ = nullptr;
    return ran_;
  }

 private:
  std::promise<void> begun_, go_;
  std::vector<std::string> ran_;  // the pool's thread's until it is over
  std::unique_ptr<TextPool> pool_;
};

TEST(TextPool, RefusesWhenTooManyWaitAndCountsWhatIsThere) {
  HeldPool pool(2);
  EXPECT_TRUE(pool.Post("a"));
  EXPECT_TRUE(pool.Post("a"));
  EXPECT_FALSE(pool.Post("a"));
  EXPECT_EQ(pool.size(), 3u);
}

TEST(TextPool, HowManyMayWaitCanChange) {
  HeldPool pool(1);
  EXPECT_TRUE(pool.Post("a"));
  EXPECT_FALSE(pool.Post("a"));
  pool.SetMaxWaiting(2);
  EXPECT_TRUE(pool.Post("a"));
  EXPECT_FALSE(pool.Post("a"));
  pool.SetMaxWaiting(1);
  EXPECT_FALSE(pool.Post("a"));
  EXPECT_EQ(pool.RunAll().size(), 2u) << "what was taken runs";
}

TEST(TextPool, TenantsTakeTurns) {
  HeldPool pool(10);
  for (int i = 0; i < 3; ++i) pool.Post("a");
  pool.Post("b");
  for (int i = 0; i < 2; ++i) pool.Post("c");
  EXPECT_THAT(pool.RunAll(), ElementsAre("a", "b", "c", "a", "c", "a"));
}

TEST(TextPool, WhoHasMuchWaitingKeepsNobodyOut) {
  HeldPool pool(8);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(pool.Post("greedy"));
  EXPECT_FALSE(pool.Post("greedy"));
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(pool.Post("modest")) << i;  // its half of 8
  EXPECT_FALSE(pool.Post("modest"));
  EXPECT_TRUE(pool.Post("third"));
  EXPECT_EQ(pool.RunAll()[1], "modest");
}

}  // namespace
}  // namespace terrace
