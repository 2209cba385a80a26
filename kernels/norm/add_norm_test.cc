#include "kernels/norm/add_norm.h"

#include <cmath>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

constexpr float kEpsilon = 1e-6f;

std::vector<float> AddNorm(const OpTable& ops, const std::vector<float>& x, const std::vector<float>& norm,
                           std::vector<float> hidden, ThreadPool& pool) {
  ops.add_norm({.x = x.data(),
                .norm = norm.data(),
                .norm_epsilon = kEpsilon,
                .hidden = hidden.data(),
                .tokens = x.size() / norm.size(),
                .width = norm.size()},
               pool);
  return hidden;
}

// A lane adds width / 16 squares and the tree 4 times, of which the root leaves half; half a dozen operations
// behind them; the sum rounds once, and so does the reference.
TEST_P(EveryCpu, AddNormMatchesTheReference) {
  for (const size_t width : {1, 15, 16, 17, 100, 2304, 4096}) {
    SCOPED_TRACE(testing::Message() << "width " << width);
    const size_t tokens = 40;  // enough for more than one thread, of the wide ones
    const auto x = RandomNormal(tokens * width, /*seed=*/width), norm = RandomNormal(width, 1),
               hidden = RandomNormal(tokens * width, 2);
    const auto want = AddNorm(ReferenceOps(), x, norm, hidden, pool_),
               got = AddNorm(ops(), x, norm, hidden, pool_);
    const double error = (static_cast<double>(width) / 16 + 5) / 2 + 6;
    for (size_t i = 0; i < x.size(); ++i) {
      const double added = std::abs(double{want[i]} - hidden[i]);
      ASSERT_NEAR(got[i], want[i], kRounding * (error * added + 2.01 * std::abs(want[i]))) << i;
    }
  }
}

TEST_P(EveryCpu, AddNormOfATokenDoesNotDependOnTheOthers) {
  const size_t width = 1000, tokens = 100;
  const auto x = RandomNormal(tokens * width, /*seed=*/3), norm = RandomNormal(width, 4),
             hidden = RandomNormal(tokens * width, 5);
  const auto together = AddNorm(ops(), x, norm, hidden, pool_);
  for (size_t token = 0; token < tokens; ++token) {
    const auto row = [&](const std::vector<float>& of) {
      const auto begin = of.begin() + static_cast<ptrdiff_t>(token * width);
      return std::vector<float>(begin, begin + static_cast<ptrdiff_t>(width));
    };
    ASSERT_TRUE(SameBits(AddNorm(ops(), row(x), norm, row(hidden), pool_), row(together))) << token;
  }
}

TEST_P(EveryCpu, AddNormOfWhatIsNotFiniteIsNaN) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          3e19f}) {  // its square overflows
    std::vector<float> x(2 * 20, 1);
    x[18] = bad;
    const auto got = AddNorm(ops(), x, std::vector<float>(20, 1), std::vector<float>(x.size(), 3), pool_);
    for (size_t i = 0; i < 20; ++i) {
      EXPECT_TRUE(std::isnan(got[i])) << bad;
      EXPECT_NEAR(got[20 + i], 4, 1e-5);
    }
  }
}

// What every instruction set with a fused multiply-add computes is the same: sums of squares go through the
// same lanes and the same tree.
TEST(AddNorm, HasTheSameBitsOnInstructionSets) {
  ThreadPool pool(1);
  const size_t width = 1234;
  const auto x = RandomNormal(3 * width, /*seed=*/7), norm = RandomNormal(width, 8),
             hidden = RandomNormal(3 * width, 9);
  std::vector<float> first;
  for (const OpTable* ops : CpuBackends()) {
    if (ops->name == "cpu generic") continue;
    const auto got = AddNorm(*ops, x, norm, hidden, pool);
    if (first.empty()) first = got;
    EXPECT_TRUE(SameBits(got, first)) << ops->name;
  }
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
