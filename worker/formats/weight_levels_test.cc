#include "worker/formats/weight_levels.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quant/weight_values.h"

namespace terrace {
namespace {

constexpr DType kBlockFormats[] = {DType::kQ8_0, DType::kQ4_0,    DType::kQ5_0,    DType::kQ4_K,
                                   DType::kQ6_K, DType::kInt4G32, DType::kInt4G128};

// A head with levels of any size, and codes of the format's range.
struct RandomBlock {
  RandomBlock(DType dtype, unsigned seed) : format(CodeFormatOf(dtype)) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> size(0.001f, 1);
    const size_t elements = Info(dtype).block_elements;
    std::vector<WeightLevel> wanted(elements / format.shared);
    for (WeightLevel& level : wanted) {
      level.scale = size(random) * (format.kind == LevelKind::kSymmetric && random() % 2 == 0 ? -1.0f : 1.0f);
      level.minimum = format.kind == LevelKind::kSymmetric ? 0 : size(random) * 5;
    }
    head = HeadOf(dtype, wanted);
    levels.resize(wanted.size());
    LevelsOf(dtype, head, levels);
    for (size_t i = 0; i < elements; ++i)
      codes.push_back(
          static_cast<uint8_t>(format.least + static_cast<int>(random() % (format.most - format.least + 1))));
  }
  const CodeFormat format;
  BlockHead head;
  std::vector<WeightLevel> levels;
  std::vector<uint8_t> codes;
};

TEST(WeightLevels, ABlockThatIsPutHasTheValuesOfItsLevels) {
  for (const DType dtype : kBlockFormats) {
    for (unsigned seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " seed " << seed);
      const RandomBlock block(dtype, seed);
      std::vector<std::byte> bytes(Info(dtype).block_bytes);
      PutBlock(dtype, block.head, block.codes, bytes.data());
      const WeightMatrix matrix = {
          .dtype = dtype, .data = bytes.data(), .rows = 1, .columns = block.codes.size()};
      std::vector<float> values(block.codes.size());
      DecodeRow(matrix, 0, values.data());
      for (size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(values[i], block.levels[i / block.format.shared].ValueOf(block.codes[i])) << i;
    }
  }
}

TEST(WeightLevels, TheCodeOfALevelsValueIsThatLevel) {
  for (const DType dtype : kBlockFormats) {
    SCOPED_TRACE(Info(dtype).name);
    const RandomBlock block(dtype, /*seed=*/7);
    for (const WeightLevel& level : block.levels) {
      if (level.scale == 0) continue;  // all codes are one value
      for (int code = block.format.least; code <= block.format.most; ++code)
        EXPECT_EQ(CodeOf(level, block.format, level.ValueOf(code)), code);
      const float beyond = 1000 * std::abs(level.scale) + 1000;
      const int first = CodeOf(level, block.format, -beyond), last = CodeOf(level, block.format, beyond);
      EXPECT_EQ(std::min(first, last), block.format.least);
      EXPECT_EQ(std::max(first, last), block.format.most);
    }
  }
}

TEST(WeightLevels, PlainLevelsReachEveryValue) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ5_0, DType::kQ4_K, DType::kQ6_K,
                            DType::kInt4G32, DType::kInt4G128, DType::kInt8}) {
    SCOPED_TRACE(Info(dtype).name);
    const CodeFormat format = CodeFormatOf(dtype);
    std::vector<float> values(format.shared == 0 ? 100 : format.shared);
    for (float& value : values) value = normal(random);
    const WeightLevel level = PlainLevel(dtype, values);
    for (const float value : values) {
      // Where levels are not as many on both sides of 0, the far end of the short side is one step off.
      const float step = std::abs(level.scale);
      EXPECT_LE(std::abs(level.ValueOf(CodeOf(level, format, value)) - value), step * 1.001f);
    }
  }
}

}  // namespace
}  // namespace terrace
