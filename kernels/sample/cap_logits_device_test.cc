#include "kernels/sample/cap_logits_device.h"

#include "kernels/op_testing.h"
#include "kernels/sample/cap_logits_testing.h"

namespace terrace {
namespace {

void CapLogits(std::vector<float>& logits, float cap, uint32_t blocks, uint64_t seed) {
  simt::RunSeeded(seed, {blocks}, kElementwiseThreads, 0, CapLogitsKernel,
                  GpuCapLogitsArgs{.logits = logits.data(), .count = logits.size() / 4 * 4, .cap = cap});
}

TEST(CapLogitsDevice, MatchesTheReference) {
  for (const size_t count : {4, 1024, 5000}) {
    for (const float cap : {0.5f, 30.0f}) {
      SCOPED_TRACE(testing::Message() << count << " logits, cap " << cap);
      std::vector<float> raw = RandomNormal(count, /*seed=*/count);
      for (float& each : raw) each *= 30;
      std::vector<float> got = raw;
      got.push_back(12345);
      CapLogits(got, cap, ElementwiseGeometry(count / 4).blocks, /*seed=*/1);
      ExpectCappedLogits(raw, cap, got.data());
      EXPECT_EQ(got.back(), 12345);
      std::vector<float> strided = raw;  // fewer threads than quads
      CapLogits(strided, cap, 1, /*seed=*/2);
      got.pop_back();
      EXPECT_TRUE(SameBits(strided, got));
    }
  }
}

TEST(CapLogitsDevice, LargeLogitsReachTheCapAndThoseThatAreNotFiniteBecomeNaN) {
  const std::vector<float> raw = {3e38f, -3e38f, 0, 1e-30f, INFINITY, -INFINITY, NAN, 5};
  std::vector<float> got = raw;
  CapLogits(got, 30, 1, /*seed=*/3);
  ExpectCappedLogits(raw, 30, got.data());
  EXPECT_EQ(got[0], 30);
  EXPECT_EQ(got[1], -30);
  EXPECT_EQ(got[2], 0);
}

}  // namespace
}  // namespace terrace
