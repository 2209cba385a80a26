#include "kernels/rope/rope_table.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(RopeTable, HoldsTheAnglesOfEveryPosition) {
  ThreadPool pool(3);
  const size_t positions = 1000, head_dim = 24, pairs = head_dim / 2;
  RopeFrequencies frequencies = MakeRopeFrequencies(500'000, head_dim);
  frequencies.scale = 1.25f;
  const RopeTable table = MakeRopeTable(positions, frequencies, pool);
  ASSERT_EQ(table.cos.size(), positions * pairs);
  ASSERT_EQ(table.sin.size(), positions * pairs);
  for (uint32_t position = 0; position < positions; ++position) {
    float cos[pairs], sin[pairs];
    RopeAngles(&position, 1, frequencies, cos, sin);
    for (size_t pair = 0; pair < pairs; ++pair) {
      ASSERT_EQ(table.cos[position * pairs + pair], cos[pair]) << position;
      ASSERT_EQ(table.sin[position * pairs + pair], sin[pair]) << position;
    }
  }
}

}  // namespace
}  // namespace terrace
