#include "kernels/norm/rms_norm_device.h"

#include <limits>

#include "kernels/norm/rms_norm_testing.h"
#include "kernels/op_testing.h"
#include "kernels/quant/int8_testing.h"

namespace terrace {
namespace {

constexpr float kEpsilon = 1e-5f;

struct Outputs {
  std::vector<uint16_t> bf16;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  bool operator==(const Outputs&) const = default;
};

enum Kinds { kBF16Only, kCodesOnly, kBoth };

// Rows `rows` of x; all of it, in order, without any.
Outputs Norm(const std::vector<float>& x, const std::vector<float>& weight, const std::vector<uint32_t>& rows,
             Kinds kinds, uint64_t seed, RowCodes codes = RowCodes::kE4M3) {
  const size_t width = weight.size(), count = rows.empty() ? x.size() / width : rows.size();
  Outputs out = {std::vector<uint16_t>(kinds == kCodesOnly ? 0 : count * width, 0xffff),
                 std::vector<uint8_t>(kinds == kBF16Only ? 0 : count * width, 0xff),
                 std::vector<float>(kinds == kBF16Only ? 0 : count, std::numeric_limits<float>::quiet_NaN())};
  const GpuRmsNormArgs args = {.x = x.data(),
                               .weight = weight.data(),
                               .rows = rows.empty() ? nullptr : rows.data(),
                               .count = static_cast<uint32_t>(count),
                               .width = static_cast<uint32_t>(width),
                               .epsilon = kEpsilon,
                               .out = kinds == kCodesOnly ? nullptr : out.bf16.data(),
                               .codes = kinds == kBF16Only ? RowCodes::kNone : codes,
                               .out_codes = kinds == kBF16Only ? nullptr : out.codes.data(),
                               .scales = out.scales.data()};
  LaunchRmsNorm(args, [&](void (*kernel)(GpuRmsNormArgs), uint32_t threads) {
    simt::RunSeeded(seed, {args.count}, threads, 0, kernel, args);
  });
  return out;
}

constexpr size_t kWidths[] = {8, 136, 1000, 2048, 2056, 4096, 5000, 8192, 8200, 20000};

TEST(RmsNormDevice, MatchesTheReference) {
  for (const size_t width : kWidths) {
    const std::vector<float> x = RandomNormal(3 * width, /*seed=*/width),
                             weight = RandomNormal(width, /*seed=*/1);
    SCOPED_TRACE(testing::Message() << "width " << width);
    const Outputs both = Norm(x, weight, {}, kBoth, /*seed=*/0);
    for (size_t row = 0; row < 3; ++row) {
      const std::vector<double> want = RmsNormRef(&x[row * width], weight, kEpsilon);
      ExpectRmsNormRow(want, &both.bf16[row * width]);
      ExpectE4M3Row(want, &both.codes[row * width], both.scales[row], kRmsNormError);
    }
    EXPECT_EQ(Norm(x, weight, {}, kBF16Only, /*seed=*/1).bf16, both.bf16);
    EXPECT_EQ(Norm(x, weight, {}, kCodesOnly, /*seed=*/2).codes, both.codes);
  }
}

TEST(RmsNormDevice, Int8MatchesTheReference) {
  for (const size_t width : kWidths) {
    const std::vector<float> x = RandomNormal(2 * width, /*seed=*/width + 1),
                             weight = RandomNormal(width, /*seed=*/1);
    SCOPED_TRACE(testing::Message() << "width " << width);
    const Outputs both = Norm(x, weight, {}, kBoth, /*seed=*/3, RowCodes::kInt8);
    for (size_t row = 0; row < 2; ++row) {
      const std::vector<double> want = RmsNormRef(&x[row * width], weight, kEpsilon);
      ExpectRmsNormRow(want, &both.bf16[row * width]);
      ExpectInt8Row(want, reinterpret_cast<const int8_t*>(&both.codes[row * width]), both.scales[row],
                    kRmsNormError);
    }
    EXPECT_EQ(Norm(x, weight, {}, kCodesOnly, /*seed=*/4, RowCodes::kInt8).codes, both.codes);
  }
}

TEST(RmsNormDevice, ARowIsTheSameWhereverItComes) {
  for (const size_t width : {64, 4096}) {
    const std::vector<float> x = RandomNormal(4 * width, /*seed=*/5),
                             weight = RandomNormal(width, /*seed=*/6);
    const Outputs all = Norm(x, weight, {}, kBoth, 0);
    const Outputs picked = Norm(x, weight, {3, 1, 1}, kBoth, 7);
    for (size_t i = 0; i < 3; ++i) {
      const size_t row = i == 0 ? 3 : 1;
      EXPECT_EQ(picked.scales[i], all.scales[row]);
      for (size_t k = 0; k < width; ++k) {
        ASSERT_EQ(picked.bf16[i * width + k], all.bf16[row * width + k]);
        ASSERT_EQ(picked.codes[i * width + k], all.codes[row * width + k]);
      }
    }
  }
}

TEST(RmsNormDevice, ZerosStayZerosAndWhatIsNotFiniteShows) {
  const size_t width = 256;
  std::vector<float> x(4 * width);
  for (size_t i = width; i < x.size(); ++i) x[i] = 1;
  x[width + 17] = NAN;
  x[2 * width + 255] = INFINITY;
  const Outputs out = Norm(x, std::vector<float>(width, 2), {}, kBoth, 0);
  for (size_t k = 0; k < width; ++k) {
    EXPECT_EQ(out.bf16[k], 0);
    EXPECT_EQ(out.codes[k], 0);
  }
  EXPECT_EQ(out.scales[0], 0);
  EXPECT_TRUE(std::isnan(out.scales[1]));
  EXPECT_TRUE(std::isnan(out.scales[2]));
  EXPECT_NEAR(out.scales[3], 2.0 / 448, 1e-7);
  EXPECT_TRUE(std::isnan(FloatFromBF16(out.bf16[width])));
  EXPECT_TRUE(std::isnan(FloatFromBF16(out.bf16[2 * width + 255])));
}

}  // namespace
}  // namespace terrace
