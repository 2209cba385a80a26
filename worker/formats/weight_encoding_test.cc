#include "worker/formats/weight_encoding.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
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

}  // namespace
}  // namespace terrace
