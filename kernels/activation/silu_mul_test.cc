#include "kernels/activation/silu_mul.h"

#include <cmath>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

std::vector<float> SiluMul(const OpTable& ops, const std::vector<float>& gate, const std::vector<float>& up,
                           ThreadPool& pool) {
  std::vector<float> out(gate.size());
  ops.silu_mul({.gate = gate.data(), .up = up.data(), .out = out.data(), .count = gate.size()}, pool);
  return out;
}

// exp is off by at most 2.5e-7 (simd/exp.h), and 1 + exp, the division, the product and the reference round
// once each: 2.5e-7 + 4 * 2^-24 < 5e-7. Below a gate of -88 exp stands still, at 2e38.
void ExpectNear(const std::vector<float>& gate, const std::vector<float>& up, const std::vector<float>& got,
                const std::vector<float>& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], 5e-7 * std::abs(want[i]) + 1e-36 * std::abs(up[i])) << "gate " << gate[i];
  }
}

TEST_P(EveryCpu, SiluMulMatchesTheReference) {
  for (const size_t count : {1, 15, 16, 31, 4096, 100'003}) {  // below, at and far above one vector
    const auto gate = RandomNormal(count, /*seed=*/count), up = RandomNormal(count, /*seed=*/count + 1);
    ExpectNear(gate, up, SiluMul(ops(), gate, up, pool_), SiluMul(ReferenceOps(), gate, up, pool_));
  }
}

TEST_P(EveryCpu, SiluMulMatchesTheReferenceOverTheWholeRangeOfExp) {
  std::vector<float> gate;
  for (float x = -120; x <= 120; x += 0.0625f) gate.push_back(x);
  const std::vector<float> up(gate.size(), 1);
  ExpectNear(gate, up, SiluMul(ops(), gate, up, pool_), SiluMul(ReferenceOps(), gate, up, pool_));
}

TEST_P(EveryCpu, SiluMulDoesNotDependOnThreadsAndWorksInPlace) {
  const auto gate = RandomNormal(300'001, /*seed=*/5), up = RandomNormal(300'001, /*seed=*/6);
  ThreadPool one(1);
  const auto want = SiluMul(ops(), gate, up, one);
  EXPECT_TRUE(SameBits(SiluMul(ops(), gate, up, pool_), want));
  auto in_place = gate;
  ops().silu_mul({.gate = in_place.data(), .up = up.data(), .out = in_place.data(), .count = up.size()},
                 pool_);
  EXPECT_TRUE(SameBits(in_place, want));
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
