#include "kernels/norm/rms_norm.h"

#include <cmath>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

std::vector<float> RmsNorm(const OpTable& ops, const std::vector<float>& x, const std::vector<float>& weight,
                           ThreadPool& pool) {
  std::vector<float> out(x.size());
  ops.rms_norm({.x = x.data(),
                .weight = weight.data(),
                .out = out.data(),
                .tokens = x.size() / weight.size(),
                .width = weight.size(),
                .epsilon = 1e-5f},
               pool);
  return out;
}

// The squares are positive, so their sum is off by at most width / 16 + 5 roundings (one per addition to a
// lane, four in the tree, one of the last partial vector), the root by half of that; 8 more for the mean, the
// root, the reciprocal, the two products and the reference's own.
TEST_P(EveryCpu, RmsNormMatchesTheReference) {
  for (const size_t width : {1, 15, 16, 17, 64, 100, 4096, 10'007}) {
    SCOPED_TRACE(testing::Message() << "width " << width);
    const auto x = RandomNormal(5 * width, /*seed=*/width), weight = RandomNormal(width, /*seed=*/width + 1);
    const auto want = RmsNorm(ReferenceOps(), x, weight, pool_), got = RmsNorm(ops(), x, weight, pool_);
    const double bound = (static_cast<double>(width) / 32 + 11) * kRounding;
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(got[i], want[i], bound * std::abs(want[i])) << i;
  }
}

TEST_P(EveryCpu, RmsNormOfATokenDoesNotDependOnTheBatchOrThreads) {
  const size_t width = 1000, tokens = 2000;  // enough for more than one thread
  const auto x = RandomNormal(tokens * width, /*seed=*/1), weight = RandomNormal(width, /*seed=*/2);
  const auto all = RmsNorm(ops(), x, weight, pool_);
  ThreadPool one(1);
  for (const size_t token : {size_t{0}, size_t{999}, tokens - 1}) {
    const auto first = static_cast<ptrdiff_t>(token * width),
               last = static_cast<ptrdiff_t>((token + 1) * width);
    EXPECT_TRUE(SameBits(RmsNorm(ops(), {x.begin() + first, x.begin() + last}, weight, one),
                         {all.begin() + first, all.begin() + last}));
  }
}

TEST_P(EveryCpu, RmsNormWorksInPlace) {
  const auto x = RandomNormal(3 * 33, /*seed=*/3), weight = RandomNormal(33, /*seed=*/4);
  auto in_place = x;
  ops().rms_norm({.x = in_place.data(),
                  .weight = weight.data(),
                  .out = in_place.data(),
                  .tokens = 3,
                  .width = 33,
                  .epsilon = 1e-5f},
                 pool_);
  EXPECT_TRUE(SameBits(in_place, RmsNorm(ops(), x, weight, pool_)));
}

TEST_P(EveryCpu, RmsNormOfZeroIsZero) {
  const std::vector<float> x(20, 0), weight(20, 2);
  EXPECT_EQ(RmsNorm(ops(), x, weight, pool_), x);
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
