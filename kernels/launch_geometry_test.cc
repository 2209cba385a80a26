#include "kernels/launch_geometry.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(LaunchGeometry, NoElementNeedsNoBlock) { EXPECT_EQ(ElementwiseGeometry(0).blocks, 0u); }

TEST(LaunchGeometry, EveryElementHasAThreadAndNoBlockIsIdle) {
  for (const size_t elements :
       {size_t{1}, size_t{255}, size_t{256}, size_t{257}, size_t{100'003}, size_t{1} << 32}) {
    const LaunchGeometry geometry = ElementwiseGeometry(elements);
    EXPECT_GE(size_t{geometry.blocks} * geometry.threads, elements);
    EXPECT_LT(size_t{geometry.blocks - 1} * geometry.threads, elements);
  }
}

TEST(LaunchGeometry, TheGridNeverPassesTheDeviceLimit) {
  EXPECT_EQ(ElementwiseGeometry(size_t{1} << 60).blocks, kMaxGridBlocks);
  EXPECT_EQ(ElementwiseGeometry(SIZE_MAX).blocks, kMaxGridBlocks);
}

}  // namespace
}  // namespace terrace
