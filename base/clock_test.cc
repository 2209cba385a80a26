#include "base/clock.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(TimespecOf, IsTheWaitInSecondsAndTheirRestAndNoneOfWhatIsOver) {
  for (const int64_t nanoseconds : {int64_t{0}, int64_t{1}, int64_t{999'999'999}, int64_t{1'000'000'000},
                                    int64_t{12'345'678'901}, INT64_MAX}) {
    const timespec wait = TimespecOf(Duration(nanoseconds));
    EXPECT_EQ(wait.tv_sec, nanoseconds / 1'000'000'000);
    EXPECT_EQ(wait.tv_nsec, nanoseconds % 1'000'000'000);
  }
  for (const int64_t nanoseconds : {int64_t{-1}, int64_t{-1'500'000'000}, INT64_MIN}) {
    const timespec wait = TimespecOf(Duration(nanoseconds));
    EXPECT_TRUE(wait.tv_sec == 0 && wait.tv_nsec == 0) << nanoseconds;
  }
}

}  // namespace
}  // namespace terrace
