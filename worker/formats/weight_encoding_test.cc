#include "worker/formats/weight_encoding.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quant/e4m3_row.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

std::vector<float> RandomNormal(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// `values` after encoding and decoding.
std::vector<float> ThereAndBack(DType dtype, const std::vector<float>& values) {
  const DTypeInfo info = Info(dtype);
  std::vector<std::byte> bytes(values.size() / info.block_elements * info.block_bytes);
  EncodeWeights(dtype, values, bytes);
  const WeightMatrix matrix = {.dtype = dtype, .data = bytes.data(), .rows = 1, .columns = values.size()};
  std::vector<float> back;
  for (size_t i = 0; i < values.size(); ++i) back.push_back(WeightAt(matrix, 0, i));
  return back;
}

TEST(EncodeWeights, IsOffByHalfAStepAtMost) {
  const auto values = RandomNormal(4096, /*seed=*/1);
  const struct {
    DType dtype;
    float relative;  // half of the last bit of the fraction
  } cases[] = {{DType::kF32, 0}, {DType::kF16, 0x1p-11f}, {DType::kBF16, 0x1p-8f}};
  for (const auto& c : cases) {
    const auto back = ThereAndBack(c.dtype, values);
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_LE(std::abs(back[i] - values[i]), std::abs(values[i]) * c.relative + 0x1p-25f)
          << Info(c.dtype).name << " " << values[i];
  }
}

TEST(EncodeWeights, Q8HasOneScaleForEachBlock) {
  auto values = RandomNormal(32 * 64, /*seed=*/2);
  for (size_t i = 0; i < 32; ++i) values[i] = 0, values[32 + i] *= 100;  // blocks do not touch each other
  values[64] = 1e-42f;                                                   // subnormal, in a block of its own
  for (size_t i = 65; i < 96; ++i) values[i] = 0;
  const auto back = ThereAndBack(DType::kQ8_0, values);
  for (size_t block = 0; block < values.size(); block += 32) {
    float largest = 0;
    for (size_t i = block; i < block + 32; ++i) largest = std::max(largest, std::abs(values[i]));
    // Half a step of the scale, and what rounding the scale to F16 moves the largest of 127 steps.
    const float bound = largest / 127 * (0.5f + 127 * 0x1p-11f) + 0x1p-24f;
    for (size_t i = block; i < block + 32; ++i) EXPECT_LE(std::abs(back[i] - values[i]), bound) << i;
  }
}

TEST(EncodeWeights, Q8KeepsWhatIsExact) {
  std::vector<float> values(32);
  for (int i = 0; i < 32; ++i) values[i] = static_cast<float>(i - 16) * 0.25f;
  values[31] = 127 * 0.25f;  // the scale is then 0.25
  EXPECT_EQ(ThereAndBack(DType::kQ8_0, values), values);
}

// Largest distance of a block's values from its levels, in steps of the largest distance between levels; a
// format with b bits spans a block's range with 2^b levels or, with scales of 6 or 8 bits, a few fewer.
TEST(EncodeWeights, QuantizedBlocksAreOffByAboutHalfAStep) {
  const struct {
    DType dtype;
    size_t shared;
    float levels;  // that span the range from the least to the largest value, both widened to 0
    bool centred;  // levels reach as far below 0 as above
  } cases[] = {{DType::kQ4_0, 32, 15, true},     {DType::kQ5_0, 32, 31, true},
               {DType::kQ4_K, 32, 15, false},    {DType::kQ6_K, 16, 63, true},
               {DType::kInt4G32, 32, 15, false}, {DType::kInt4G128, 128, 15, false}};
  const auto values = RandomNormal(8192, /*seed=*/3);
  for (const auto& c : cases) {
    SCOPED_TRACE(Info(c.dtype).name);
    const auto back = ThereAndBack(c.dtype, values);
    for (size_t block = 0; block < values.size(); block += c.shared) {
      float least = 0, most = 0;
      for (size_t i = block; i < block + c.shared; ++i) {
        least = std::min(least, values[i]);
        most = std::max(most, values[i]);
      }
      // Centred formats have one level less on the side that the peak is not on. K formats round scales and
      // minima of 32 to 1/63 of the largest (Q6_K: 1/127), of a range up to a few times this one.
      const float range = c.centred ? 2 * std::max(most, -least) : most - least;
      const float step = range / c.levels;
      const float scales = c.dtype == DType::kQ4_K ? 8.0f / 63 : c.dtype == DType::kQ6_K ? 2.0f / 127 : 0;
      for (size_t i = block; i < block + c.shared; ++i) {
        ASSERT_LE(std::abs(back[i] - values[i]), step * 1.1f + scales * range) << i;
      }
    }
  }
}

TEST(EncodeWeights, ZerosStayZeros) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.dtype == DType::kInt8) continue;  // has no encoder
    for (const float value : ThereAndBack(info.dtype, std::vector<float>(256))) EXPECT_EQ(value, 0.0f);
  }
}

TEST(EncodeInt8Row, IsOffByHalfAStepAtMost) {
  const auto values = RandomNormal(200, /*seed=*/4);
  std::vector<std::byte> codes(values.size());
  const float scale = EncodeInt8Row(values, codes);
  const WeightMatrix matrix = {
      .dtype = DType::kInt8, .data = codes.data(), .rows = 1, .columns = values.size(), .row_scales = &scale};
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_LE(std::abs(WeightAt(matrix, 0, i) - values[i]), scale * 0.5001f) << i;
}

std::vector<float> Fp8ThereAndBack(const std::vector<float>& values) {
  std::vector<std::byte> bytes(2 * values.size());
  RoundToFp8(values, bytes);
  const WeightMatrix matrix = {
      .dtype = DType::kBF16, .data = bytes.data(), .rows = 1, .columns = values.size()};
  std::vector<float> back(values.size());
  DecodeRow(matrix, 0, back.data());
  return back;
}

TEST(RoundToFp8, IsOffByHalfAStepOfThreeBitsAndWhatItMadeStays) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(seed);
    auto values = RandomNormal(300, seed);
    for (float& value : values) value *= std::exp2(static_cast<float>(seed) - 25);
    const auto rounded = Fp8ThereAndBack(values);
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < values.size(); ++i) {
      // Of a value half a step of its power of 2, of the smallest half of 2^-9 of the scale; and BF16 twice.
      const float bound =
          std::max(std::abs(values[i]) / 16, largest / 448 / 1024) + 0.01f * std::abs(values[i]);
      ASSERT_LE(std::abs(rounded[i] - values[i]), bound) << i;
    }
    EXPECT_EQ(Fp8ThereAndBack(rounded), rounded);

    std::vector<uint8_t> codes(values.size());
    const float scale = QuantizeE4M3(rounded, codes.data());
    for (size_t i = 0; i < codes.size(); ++i) {
      const float value = scale * FloatFromE4M3(codes[i]);
      ASSERT_EQ(FloatFromBF16(BF16FromFloat(value)), rounded[i]) << i;
    }
  }
  EXPECT_EQ(Fp8ThereAndBack({0, 0, 0}), (std::vector<float>{0, 0, 0}));
}

}  // namespace
}  // namespace terrace
