#include "kernels/activation/gate_mul_device.h"

#include <algorithm>
#include <limits>
#include <random>

#include "gtest/gtest.h"
#include "kernels/activation/gate_mul_testing.h"
#include "kernels/quant/e4m3_testing.h"

namespace terrace {
namespace {

// [tokens, 2 width] of magnitude about `scale`, within kGateMulMost.
std::vector<uint16_t> RandomInput(size_t tokens, size_t width, float scale, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<uint16_t> in(tokens * 2 * width);
  for (uint16_t& each : in) each = BF16FromFloat(std::clamp(normal(random), -kGateMulMost, kGateMulMost));
  return in;
}

struct Outputs {
  std::vector<uint16_t> bf16;
  std::vector<uint8_t> e4m3;
  std::vector<float> scales;
};

enum Kinds { kBF16Only, kE4M3Only, kBoth };

Outputs Gate(GateFunction function, const std::vector<uint16_t>& in, size_t width, Kinds kinds,
             uint64_t seed = 0) {
  const size_t tokens = in.size() / 2 / width;
  Outputs out = {std::vector<uint16_t>(tokens * width, 0xffff), std::vector<uint8_t>(tokens * width, 0xff),
                 std::vector<float>(tokens, std::numeric_limits<float>::quiet_NaN())};
  const GpuGateMulArgs args = {.in = in.data(),
                               .tokens = static_cast<uint32_t>(tokens),
                               .width = static_cast<uint32_t>(width),
                               .gate = function,
                               .out = kinds == kE4M3Only ? nullptr : out.bf16.data(),
                               .out_e4m3 = kinds == kBF16Only ? nullptr : out.e4m3.data(),
                               .scales = out.scales.data()};
  LaunchGateMul(args, [&](uint32_t blocks, uint32_t threads, auto* kernel, const auto&... arguments) {
    simt::RunSeeded(seed, {blocks}, threads, 0, kernel, arguments...);
  });
  return out;
}

// What the tests of products take for the most that a gate's error grows by, and no more than that.
TEST(GateMulDevice, SlopesOfTheReferenceAreAtMostGateSlope) {
  for (const GateFunction function : kGateFunctions) {
    double most = 0;
    for (double x = -10; x < 10; x += 0x1p-10) {
      most = std::max(most, std::abs(GateRef(function, x + 0x1p-10) - GateRef(function, x)) * 0x1p10);
    }
    EXPECT_LE(most, GateSlope(function)) << GateFunctionName(function);
    EXPECT_GT(most, GateSlope(function) - 0.01) << GateFunctionName(function);
  }
}

TEST(GateMulDevice, MatchesTheReference) {
  for (const GateFunction function : kGateFunctions) {
    for (const size_t width : {8, 40, 2048, 4104, 8200, 14336, 33000}) {
      SCOPED_TRACE(testing::Message() << GateFunctionName(function) << ", width " << width);
      const std::vector<uint16_t> in = RandomInput(3, width, /*scale=*/3, /*seed=*/width);
      const Outputs plain = Gate(function, in, width, kBF16Only, /*seed=*/1);
      const Outputs both = Gate(function, in, width, kBoth, /*seed=*/2);
      for (size_t token = 0; token < 3; ++token) {
        const std::vector<double> want = GateMulRef(function, &in[token * 2 * width], width);
        ExpectGateMulRow(function, want, &plain.bf16[token * width]);
        ExpectE4M3Row(want, &both.e4m3[token * width], both.scales[token], GateMulError(function));
      }
      EXPECT_EQ(plain.bf16, both.bf16);
      EXPECT_EQ(Gate(function, in, width, kE4M3Only).e4m3, both.e4m3);
    }
  }
}

TEST(GateMulDevice, GatesFarFromZeroVanishOrPass) {
  const size_t width = 512;
  for (const GateFunction function : kGateFunctions) {
    SCOPED_TRACE(GateFunctionName(function));
    const std::vector<uint16_t> in = RandomInput(2, width, /*scale=*/60, /*seed=*/1);
    const Outputs out = Gate(function, in, width, kBF16Only);
    for (size_t token = 0; token < 2; ++token) {
      ExpectGateMulRow(function, GateMulRef(function, &in[token * 2 * width], width),
                       &out.bf16[token * width]);
    }
  }
}

TEST(GateMulDevice, GatesOfAnySizeVanishOrPass) {
  for (const GateFunction function : kGateFunctions) {
    SCOPED_TRACE(GateFunctionName(function));
    ExpectFarGatesVanishOrPass(Gate(function, FarGates(), 16, kBF16Only).bf16);
  }
}

// What threads that take two tiles do is the same: more tokens than fill a GPU are one tile of them short
// here.
TEST(GateMulDevice, TwoTilesAThreadAreTheSame) {
  const uint32_t width = 8 * 41, tiles = 3 * 41;
  const std::vector<uint16_t> in = RandomInput(3, width, /*scale=*/3, /*seed=*/9);
  for (const GateFunction function : kGateFunctions) {
    const Outputs want = Gate(function, in, width, kBF16Only);
    std::vector<uint16_t> got(want.bf16.size(), 0xffff);
    const GpuGateMulArgs args = {
        .in = in.data(), .tokens = 3, .width = width, .gate = function, .out = got.data()};
    simt::RunSeeded(3, {1}, kElementwiseThreads, 0, GateMulKernel<2>, args, tiles);
    EXPECT_EQ(got, want.bf16) << GateFunctionName(function);
  }
}

TEST(GateMulDevice, ZerosStayZerosAndWhatIsNotFiniteShows) {
  const size_t width = 64;
  std::vector<uint16_t> in(5 * 2 * width, BF16FromFloat(1));
  std::fill_n(in.begin(), 2 * width, uint16_t{0});
  in[2 * width + 3] = 0x7fc0;       // a gate that is NaN
  in[4 * width + 16 + 9] = 0x7f80;  // an up that is infinite
  in[8 * width + 3] = 0x7f80;       // gates that are
  in[8 * width + 4] = 0xff80;
  for (const GateFunction function : kGateFunctions) {
    SCOPED_TRACE(GateFunctionName(function));
    const Outputs out = Gate(function, in, width, kBoth);
    for (size_t i = 0; i < width; ++i) EXPECT_EQ(out.e4m3[i], 0);
    EXPECT_EQ(out.scales[0], 0);
    for (const size_t token : {1, 2, 4}) EXPECT_TRUE(std::isnan(out.scales[token]));
    EXPECT_NEAR(out.scales[3], GateRef(function, 1) / 448, 1e-9);
    EXPECT_TRUE(std::isnan(FloatFromBF16(out.bf16[width + 3])));
    EXPECT_TRUE(std::isinf(FloatFromBF16(out.bf16[2 * width + 9])));
    EXPECT_FALSE(std::isfinite(FloatFromBF16(out.bf16[4 * width + 3])));
    EXPECT_FALSE(std::isfinite(FloatFromBF16(out.bf16[4 * width + 4])));
  }
}

}  // namespace
}  // namespace terrace
