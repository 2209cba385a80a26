#include "kernels/quant/quantize_rows_device.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quant/int8_testing.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

struct Rows {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

template <RowCodes kCodes = RowCodes::kE4M3>
Rows Quantize(const std::vector<uint16_t>& x, uint32_t rows, uint32_t width, uint64_t seed) {
  Rows out{std::vector<uint8_t>(x.size(), 0xff), std::vector<float>(rows, std::nanf(""))};
  simt::RunSeeded(seed, {rows, 1, 1}, kQuantizeThreads, 0, QuantizeRowsKernel<kCodes>,
                  GpuQuantizeRowsArgs{x.data(), rows, width, out.codes.data(), out.scales.data()});
  return out;
}

// A code is off by at most half a step: 2^-4 of a normal value, 2^-10 of 448 codes below 2^-6; value *
// inverse and its rounding add less than 2^-22.
TEST(QuantizeRows, ValuesAreWithinHalfAStep) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  for (const uint32_t width : {8u, 64u, 2056u, 4096u}) {
    const uint32_t rows = 3;
    std::vector<uint16_t> x(rows * width);
    for (auto& v : x) v = BF16FromFloat(normal(random));
    const Rows out = Quantize(x, rows, width, width);
    for (uint32_t r = 0; r < rows; ++r) {
      float largest = 0;
      for (uint32_t i = 0; i < width; ++i)
        largest = std::max(largest, std::abs(FloatFromBF16(x[r * width + i])));
      EXPECT_FLOAT_EQ(out.scales[r], largest / 448);
      for (uint32_t i = 0; i < width; ++i) {
        const float value = FloatFromBF16(x[r * width + i]);
        EXPECT_NEAR(FloatFromE4M3(out.codes[r * width + i]) * out.scales[r], value,
                    std::abs(value) * 0x1.001p-4f + out.scales[r] * 0x1.001p-10f);
      }
    }
  }
}

TEST(QuantizeRows, Int8IsWithinHalfAStep) {
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal;
  for (const uint32_t width : {8u, 64u, 2056u, 4096u}) {
    const uint32_t rows = 3;
    std::vector<uint16_t> x(rows * width);
    for (auto& v : x) v = BF16FromFloat(normal(random));
    const Rows out = Quantize<RowCodes::kInt8>(x, rows, width, width);
    for (uint32_t r = 0; r < rows; ++r) {
      std::vector<double> want(width);
      for (uint32_t i = 0; i < width; ++i) want[i] = FloatFromBF16(x[r * width + i]);
      ExpectInt8Row(want, reinterpret_cast<const int8_t*>(&out.codes[r * width]), out.scales[r], 0);
    }
  }
}

TEST(QuantizeRows, Int8RowsOfZerosAndOfNaN) {
  const uint32_t width = 16;
  std::vector<uint16_t> x(2 * width, 0);
  x[width + 5] = 0x7fc0;
  const Rows out = Quantize<RowCodes::kInt8>(x, 2, width, 7);
  EXPECT_EQ(out.scales[0], 0);
  for (uint32_t i = 0; i < width; ++i) EXPECT_EQ(out.codes[i], 0);
  EXPECT_TRUE(std::isnan(out.scales[1]));
}

TEST(QuantizeRows, RowsOfZerosAndOfNaN) {
  const uint32_t width = 16;
  std::vector<uint16_t> x(3 * width, 0);
  x[width + 5] = 0x7fc0;      // NaN
  x[2 * width + 5] = 0xff80;  // -infinity
  const Rows out = Quantize(x, 3, width, 7);
  EXPECT_EQ(out.scales[0], 0);
  for (uint32_t i = 0; i < width; ++i) EXPECT_EQ(FloatFromE4M3(out.codes[i]), 0);
  EXPECT_TRUE(std::isnan(out.scales[1]));
  EXPECT_TRUE(std::isnan(out.scales[2]));
}

}  // namespace
}  // namespace terrace
