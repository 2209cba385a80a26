#include "base/descriptor.h"

#include <array>
#include <chrono>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

struct Pipe {
  Pipe() {
    std::array<int, 2> ends = {-1, -1};
    EXPECT_EQ(pipe(ends.data()), 0);
    out = Descriptor(ends[0]);
    in = Descriptor(ends[1]);
  }
  Descriptor out, in;
};

TEST(Descriptor, ClosesWhatItOwns) {
  Pipe both;
  char byte = 0;
  {
    const Descriptor in = std::move(both.in);
    EXPECT_TRUE(in.is_open() && !both.in.is_open());
  }
  EXPECT_EQ(read(both.out.number(), &byte, 1), 0) << "its only writer is closed";
}

TEST(Poll, SaysWhichHaveWhatTheyAreAskedFor) {
  const Pipe empty, full;
  ASSERT_EQ(write(full.in.number(), "x", 1), 1);
  std::vector<pollfd> set = {{.fd = empty.out.number(), .events = POLLIN, .revents = 0},
                             {.fd = full.out.number(), .events = POLLIN, .revents = 0},
                             {.fd = -1, .events = POLLIN, .revents = 0}};
  EXPECT_EQ(Poll(set, std::chrono::hours(1)), 1);
  EXPECT_EQ(set[0].revents, 0);
  EXPECT_EQ(set[1].revents, POLLIN);
}

TEST(Poll, EndsWhenTheWaitIsOverAlsoWhenItWasBefore) {
  const Pipe empty;
  std::vector<pollfd> set = {{.fd = empty.out.number(), .events = POLLIN, .revents = 0}};
  for (const Duration wait : {Duration(1), Duration(0), Duration(-1), Duration(-std::chrono::hours(1))})
    EXPECT_EQ(Poll(set, wait), 0) << wait.count();
}

}  // namespace
}  // namespace terrace
