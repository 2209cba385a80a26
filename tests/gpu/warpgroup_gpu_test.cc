#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/launch_cuda.h"
#include "kernels/scalar_convert.h"
#include "tests/gpu/gpu_testing.h"
#include "tests/gpu/warpgroup_probe.h"

namespace terrace {
namespace {

struct Probe {
  std::vector<uint16_t> a, b;
  std::vector<float> out;
  // `spread`: magnitudes are of as many octaves, where numbers are not whole.
  explicit Probe(uint64_t seed, bool is_whole, int spread = 0)
      : a(kProbeRows * kProbeDepth), b(kProbeDepth * kProbeColumns), out(kProbeRows * kProbeColumns) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> whole(-8, 8), octave(-spread / 2, spread / 2);
    for (auto* each : {&a, &b}) {
      for (uint16_t& v : *each)
        v = BF16FromFloat(is_whole ? static_cast<float>(whole(random))
                                   : std::ldexp(normal(random), octave(random)));
    }
    for (float& v : out) v = is_whole ? static_cast<float>(whole(random)) : normal(random);
  }
};

// Whole numbers: no sum is rounded.
TEST(WarpgroupGpu, EveryKindOfOperandMultipliesExactly) {
  if (!HasWarpgroups()) GTEST_SKIP() << "not sm_90";
  const Probe probe(7, true);
  for (const bool of_registers : {false, true}) {
    for (const bool transposed : {false, true}) {
      const DeviceArray<uint16_t> a(probe.a), b(probe.b);
      const DeviceArray<float> out(probe.out);
      CUDA_MUST(ProbeWgmma(a.data(), b.data(), out.data(), of_registers, transposed, nullptr));
      const std::vector<float> got = out.Get();
      for (uint32_t i = 0; i < got.size(); ++i) {
        float expected = probe.out[i];
        for (uint32_t k = 0; k < kProbeDepth; ++k) {
          expected += FloatFromBF16(probe.a[i / kProbeColumns * kProbeDepth + k]) *
                      FloatFromBF16(probe.b[k * kProbeColumns + i % kProbeColumns]);
        }
        ASSERT_EQ(got[i], expected) << "registers " << of_registers << " transposed " << transposed << " at "
                                    << i;
      }
    }
  }
}

// Not a rule, an observation: whether a kernel of one could stand in for one of the other where bits count.
TEST(WarpgroupGpu, SaysHowManySumsEqualThoseOfMma) {
  if (!HasWarpgroups()) GTEST_SKIP() << "not sm_90";
  for (const int spread : {0, 16}) {
    size_t equal = 0, all = 0;
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      const Probe probe(seed, false, spread);
      const DeviceArray<uint16_t> a(probe.a), b(probe.b);
      const DeviceArray<float> wgmma(probe.out), mma(probe.out);
      CUDA_MUST(ProbeWgmma(a.data(), b.data(), wgmma.data(), false, true, nullptr));
      CUDA_MUST(ProbeMma(a.data(), b.data(), mma.data(), nullptr));
      const std::vector<float> one = wgmma.Get(), other = mma.Get();
      for (size_t i = 0; i < one.size(); ++i) {
        if (spread == 0) {
          EXPECT_NEAR(one[i], other[i], 1e-3);
        }
        equal += one[i] == other[i];
      }
      all += one.size();
    }
    std::printf("wgmma and mma.sync, magnitudes of %d octaves: %zu of %zu sums have the same bits\n", spread,
                equal, all);
  }
}

}  // namespace
}  // namespace terrace
