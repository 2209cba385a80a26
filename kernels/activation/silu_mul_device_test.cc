#include "kernels/activation/silu_mul_device.h"

#include <algorithm>
#include <limits>
#include <random>

#include "gtest/gtest.h"
#include "kernels/activation/silu_mul_testing.h"
#include "kernels/quant/e4m3_testing.h"

namespace terrace {
namespace {

// [tokens, 2 width] of magnitude about `scale`, within kSiluMulMost.
std::vector<uint16_t> RandomInput(size_t tokens, size_t width, float scale, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<uint16_t> in(tokens * 2 * width);
  for (uint16_t& each : in) each = BF16FromFloat(std::clamp(normal(random), -kSiluMulMost, kSiluMulMost));
  return in;
}

struct Outputs {
  std::vector<uint16_t> bf16;
  std::vector<uint8_t> e4m3;
  std::vector<float> scales;
};

enum Kinds { kBF16Only, kE4M3Only, kBoth };

Outputs Silu(const std::vector<uint16_t>& in, size_t width, Kinds kinds, uint64_t seed = 0) {
  const size_t tokens = in.size() / 2 / width;
  Outputs out = {std::vector<uint16_t>(tokens * width, 0xffff), std::vector<uint8_t>(tokens * width, 0xff),
                 std::vector<float>(tokens, std::numeric_limits<float>::quiet_NaN())};
  const GpuSiluMulArgs args = {.in = in.data(),
                               .tokens = static_cast<uint32_t>(tokens),
                               .width = static_cast<uint32_t>(width),
                               .out = kinds == kE4M3Only ? nullptr : out.bf16.data(),
                               .out_e4m3 = kinds == kBF16Only ? nullptr : out.e4m3.data(),
                               .scales = out.scales.data()};
  LaunchSiluMul(args, [&](uint32_t blocks, uint32_t threads, auto* kernel, const auto&... arguments) {
    simt::RunSeeded(seed, {blocks}, threads, 0, kernel, arguments...);
  });
  return out;
}

TEST(SiluMulDevice, MatchesTheReference) {
  for (const size_t width : {8, 40, 2048, 4104, 8200, 14336, 33000}) {
    SCOPED_TRACE(testing::Message() << "width " << width);
    const std::vector<uint16_t> in = RandomInput(3, width, /*scale=*/3, /*seed=*/width);
    const Outputs plain = Silu(in, width, kBF16Only, /*seed=*/1), both = Silu(in, width, kBoth, /*seed=*/2);
    for (size_t token = 0; token < 3; ++token) {
      const std::vector<double> want = SiluMulRef(&in[token * 2 * width], width);
      ExpectSiluMulRow(want, &plain.bf16[token * width]);
      ExpectE4M3Row(want, &both.e4m3[token * width], both.scales[token], kSiluMulError);
    }
    EXPECT_EQ(plain.bf16, both.bf16);
    EXPECT_EQ(Silu(in, width, kE4M3Only).e4m3, both.e4m3);
  }
}

TEST(SiluMulDevice, GatesFarFromZeroVanishOrPass) {
  const size_t width = 512;
  const std::vector<uint16_t> in = RandomInput(2, width, /*scale=*/60, /*seed=*/1);
  const Outputs out = Silu(in, width, kBF16Only);
  for (size_t token = 0; token < 2; ++token) {
    ExpectSiluMulRow(SiluMulRef(&in[token * 2 * width], width), &out.bf16[token * width]);
  }
}

// What threads that take two tiles do is the same: more tokens than fill a GPU are one tile of them short
// here.
TEST(SiluMulDevice, TwoTilesAThreadAreTheSame) {
  const uint32_t width = 8 * 41, tiles = 3 * 41;
  const std::vector<uint16_t> in = RandomInput(3, width, /*scale=*/3, /*seed=*/9);
  const Outputs want = Silu(in, width, kBF16Only);
  std::vector<uint16_t> got(want.bf16.size(), 0xffff);
  const GpuSiluMulArgs args = {.in = in.data(), .tokens = 3, .width = width, .out = got.data()};
  simt::RunSeeded(3, {1}, kElementwiseThreads, 0, SiluMulKernel<2>, args, tiles);
  EXPECT_EQ(got, want.bf16);
}

TEST(SiluMulDevice, ZerosStayZerosAndWhatIsNotFiniteShows) {
  const size_t width = 64;
  std::vector<uint16_t> in(4 * 2 * width, BF16FromFloat(1));
  std::fill_n(in.begin(), 2 * width, uint16_t{0});
  in[2 * width + 3] = 0x7fc0;       // a gate that is NaN
  in[4 * width + 16 + 9] = 0x7f80;  // an up that is infinite
  const Outputs out = Silu(in, width, kBoth);
  for (size_t i = 0; i < width; ++i) EXPECT_EQ(out.e4m3[i], 0);
  EXPECT_EQ(out.scales[0], 0);
  EXPECT_TRUE(std::isnan(out.scales[1]));
  EXPECT_TRUE(std::isnan(out.scales[2]));
  EXPECT_NEAR(out.scales[3], 0.7310586 / 448, 1e-9);
  EXPECT_TRUE(std::isnan(FloatFromBF16(out.bf16[width + 3])));
  EXPECT_TRUE(std::isinf(FloatFromBF16(out.bf16[2 * width + 9])));
}

}  // namespace
}  // namespace terrace
