#include "kernels/rope/rope.h"

#include <cmath>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

struct Angles {
  Angles(const std::vector<uint32_t>& positions, size_t head_dim)
      : cos(positions.size() * head_dim / 2), sin(cos.size()) {
    RopeAngles(positions.data(), positions.size(), 10000, head_dim, cos.data(), sin.data());
  }
  std::vector<float> cos, sin;
};

std::vector<float> Rope(const OpTable& ops, std::vector<float> x, const std::vector<uint32_t>& positions,
                        size_t head_dim, bool neighbours) {
  const Angles angles(positions, head_dim);
  ops.rope({.x = x.data(),
            .cos = angles.cos.data(),
            .sin = angles.sin.data(),
            .tokens = positions.size(),
            .heads = x.size() / positions.size() / head_dim,
            .head_dim = head_dim,
            .neighbours = neighbours});
  return x;
}

// Two products and a difference: three roundings of at most |first| + |second|, and the reference's own.
TEST_P(EveryCpu, RopeMatchesTheReference) {
  const std::vector<uint32_t> positions = {0, 1, 17, 511, 100'000};
  for (const size_t head_dim : {2, 6, 32, 128}) {
    for (const bool neighbours : {false, true}) {
      const auto x = RandomNormal(positions.size() * 3 * head_dim, /*seed=*/head_dim);
      const auto want = Rope(ReferenceOps(), x, positions, head_dim, neighbours);
      const auto got = Rope(ops(), x, positions, head_dim, neighbours);
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t head = i / head_dim * head_dim, element = i % head_dim, pairs = head_dim / 2;
        const size_t partner = neighbours ? element ^ 1 : (element + pairs) % head_dim;
        EXPECT_NEAR(got[i], want[i], 4 * kRounding * (std::abs(x[i]) + std::abs(x[head + partner]))) << i;
      }
    }
  }
}

TEST_P(EveryCpu, RopeLeavesPositionZeroAsItIs) {
  const auto x = RandomNormal(64, /*seed=*/1);
  EXPECT_TRUE(SameBits(Rope(ops(), x, {0}, 32, false), x));
}

// What RoPE is for: scores depend on the distance of two positions alone.
TEST_P(EveryCpu, RopedScoresDependOnTheDistanceOnly) {
  const auto q = RandomNormal(32, /*seed=*/2), k = RandomNormal(32, /*seed=*/3);
  for (const bool neighbours : {false, true}) {
    const auto score = [&](uint32_t query_position, uint32_t key_position) {
      const auto a = Rope(ops(), q, {query_position}, 32, neighbours);
      const auto b = Rope(ops(), k, {key_position}, 32, neighbours);
      double sum = 0;
      for (size_t i = 0; i < 32; ++i) sum += double{a[i]} * b[i];
      return sum;
    };
    EXPECT_NEAR(score(9, 4), score(405, 400), 1e-5);
    EXPECT_GT(std::abs(score(9, 4) - score(9, 5)), 1e-3);
  }
}

// A GGUF file stores row p of a head's first half next to row p of its second half.
TEST_P(EveryCpu, NeighboursAreHalvesOfPermutedRows) {
  const size_t head_dim = 32, pairs = 16;
  const auto interleave = [&](const std::vector<float>& x) {
    std::vector<float> out(head_dim);
    for (size_t i = 0; i < head_dim; ++i) out[i < pairs ? 2 * i : 2 * (i - pairs) + 1] = x[i];
    return out;
  };
  const auto x = RandomNormal(head_dim, /*seed=*/4);
  EXPECT_TRUE(SameBits(interleave(Rope(ops(), x, {77}, head_dim, false)),
                       Rope(ops(), interleave(x), {77}, head_dim, true)));
}

TEST(RopeAngles, DoNotDependOnTheBatch) {
  const Angles together({3, 70'000, 12}, 64), alone({70'000}, 64);
  EXPECT_TRUE(SameBits({together.cos.begin() + 32, together.cos.begin() + 64}, alone.cos));
  EXPECT_TRUE(SameBits({together.sin.begin() + 32, together.sin.begin() + 64}, alone.sin));
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
