#include "kernels/quant/weight_values.h"

#include <bit>
#include <fstream>
#include <sstream>

#include "kernels/op_testing.h"
#include "kernels/quant/weight_codes.h"

namespace terrace {
namespace {

std::vector<std::byte> FromHex(const std::string& hex) {
  std::vector<std::byte> out;
  for (size_t i = 0; i < hex.size(); i += 2) {
    out.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return out;
}

TEST(WeightValues, BlocksOfGgufHaveTheValuesOfItsOwnPackage) {
  std::ifstream file("kernels/testdata/gguf_blocks.txt");
  size_t types = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("//")) continue;
    std::istringstream words(line);
    std::string name, blocks, values;
    words >> name >> blocks >> values;
    SCOPED_TRACE(name);
    const auto info = std::ranges::find(kDTypes, name, &DTypeInfo::name);
    ASSERT_NE(info, std::end(kDTypes));
    const std::vector<std::byte> bytes = FromHex(blocks), want = FromHex(values);
    const WeightMatrix matrix{
        .dtype = info->dtype, .data = bytes.data(), .rows = 1, .columns = 2 * info->block_elements};
    ASSERT_EQ(bytes.size(), matrix.RowBytes());
    std::vector<float> row(matrix.columns);
    DecodeRow(matrix, 0, row.data());
    for (size_t i = 0; i < row.size(); ++i) {
      EXPECT_EQ(row[i], LoadUnaligned<float>(want.data() + 4 * i)) << i;
      EXPECT_EQ(row[i], WeightAt(matrix, 0, i)) << i;
    }
    ++types;
  }
  EXPECT_EQ(types, 5u);
}

TEST(WeightValues, ARowIsItsElements) {
  for (const DType dtype : kEveryDType) {
    SCOPED_TRACE(Info(dtype).name);
    const RandomWeights weights(dtype, 3, 512, /*seed=*/1);
    std::vector<float> row(512);
    for (size_t i = 0; i < 3; ++i) {
      DecodeRow(weights.matrix, i, row.data());
      for (size_t k = 0; k < 512; ++k) ASSERT_EQ(row[k], WeightAt(weights.matrix, i, k));
    }
  }
}

TEST(WeightValues, Int4TakesTheZeroPointFromEachCode) {
  std::byte block[68] = {};
  const uint16_t two = F16FromFloat(2);
  std::memcpy(block, &two, 2);
  block[2] = std::byte{3};
  block[4] = std::byte{0xf1};  // elements 0 and 1
  const WeightMatrix matrix{.dtype = DType::kInt4G128, .data = block, .rows = 1, .columns = 128};
  EXPECT_EQ(WeightAt(matrix, 0, 0), 2 * (1 - 3));
  EXPECT_EQ(WeightAt(matrix, 0, 1), 2 * (15 - 3));
  EXPECT_EQ(WeightAt(matrix, 0, 127), 2 * (0 - 3));
}

}  // namespace
}  // namespace terrace
