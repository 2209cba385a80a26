#include "kernels/rope/rope_table.h"

#include "gtest/gtest.h"
#include "kernels/rope/rope_kv.h"

namespace terrace {
namespace {

TEST(RopeTable, HoldsTheAnglesOfEveryPosition) {
  ThreadPool pool(3);
  const size_t positions = 1000, head_dim = 24, pairs = head_dim / 2;
  const RopeTable table = MakeRopeTable(positions, 500'000, head_dim, pool);
  ASSERT_EQ(table.cos.size(), positions * pairs);
  ASSERT_EQ(table.sin.size(), positions * pairs);
  for (uint32_t position = 0; position < positions; ++position) {
    float cos[pairs], sin[pairs];
    RopeAngles(&position, 1, 500'000, head_dim, cos, sin);
    for (size_t pair = 0; pair < pairs; ++pair) {
      ASSERT_EQ(table.cos[position * pairs + pair], cos[pair]) << position;
      ASSERT_EQ(table.sin[position * pairs + pair], sin[pair]) << position;
    }
  }
}

}  // namespace
}  // namespace terrace
