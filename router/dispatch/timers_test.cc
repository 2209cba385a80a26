#include "router/dispatch/timers.h"

#include <string>

#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::seconds;

MonoTime At(int second) { return MonoTime(seconds(second)); }

class TimersTest : public ::testing::Test {
 protected:
  Timers::Id Add(int second, char name) {
    return timers_.Add(At(second), [this, name] { called_ += name; });
  }

  Timers timers_;
  std::string called_;
};

TEST_F(TimersTest, WhatIsDueIsCalledOnceTheEarliestFirst) {
  Add(2, 'c');
  Add(1, 'a');
  Add(3, 'd');
  Add(1, 'b');
  timers_.RunDue(At(1) - Duration(1));
  EXPECT_EQ(called_, "");
  timers_.RunDue(At(2));
  EXPECT_EQ(called_, "abc");
  timers_.RunDue(At(2));
  EXPECT_EQ(called_, "abc");
  timers_.RunDue(At(9));
  EXPECT_EQ(called_, "abcd");
  EXPECT_TRUE(timers_.is_empty());
}

TEST_F(TimersTest, WhatIsRemovedIsNotCalled) {
  const Timers::Id first = Add(1, 'a');
  Add(1, 'b');
  timers_.Remove(first);
  timers_.Remove(first);
  timers_.RunDue(At(1));
  EXPECT_EQ(called_, "b");
  timers_.Remove(first);  // also when it is over
  EXPECT_TRUE(timers_.is_empty());
}

TEST_F(TimersTest, AFunctionMayAddAndRemoveOthers) {
  const Timers::Id other = Add(5, 'x');
  timers_.Add(At(1), [&] {
    timers_.Remove(other);
    Add(1, 'n');
  });
  timers_.RunDue(At(1));
  EXPECT_EQ(called_, "") << "what is added is for the next round";
  timers_.RunDue(At(5));
  EXPECT_EQ(called_, "n");
}

}  // namespace
}  // namespace terrace
