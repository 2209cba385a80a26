#include "tools/optimize/quantized_matrix.h"

#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "tools/optimize/testing_matrices.h"
#include "worker/formats/weight_encoding.h"

namespace terrace {
namespace {

struct Case {
  DType dtype;
  uint32_t group;
};
constexpr Case kCases[] = {{DType::kInt4G32, 32}, {DType::kInt4G32, 64}, {DType::kInt4G128, 128},
                           {DType::kInt8, 0},     {DType::kQ8_0, 0},     {DType::kQ4_0, 0},
                           {DType::kQ5_0, 0},     {DType::kQ4_K, 0},     {DType::kQ6_K, 0}};

TEST(RowFormat, RefusesRowsThatAreNotWholeBlocksWithTheirNumbers) {
  const struct {
    DType dtype;
    uint32_t group;
    size_t columns;
    const char* mention;
  } cases[] = {{DType::kInt4G128, 128, 64, "blocks of 128"},
               {DType::kInt4G32, 64, 96, "blocks of 64"},
               {DType::kQ4_K, 0, 128, "blocks of 256"},
               {DType::kQ8_0, 0, 40, "rows of 40"}};
  for (const auto& c : cases) {
    const Status status = RowFormat::Create(c.dtype, c.group, c.columns).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << status;
  }
  EXPECT_TRUE(RowFormat::Create(DType::kInt8, 0, 40).ok());
}

TEST(WithWholeBlocks, FallsBackAsLlamaCppDoes) {
  EXPECT_EQ(WithWholeBlocks(DType::kQ4_K, 512), DType::kQ4_K);
  EXPECT_EQ(WithWholeBlocks(DType::kQ4_K, 64), DType::kQ5_0);
  EXPECT_EQ(WithWholeBlocks(DType::kQ6_K, 64), DType::kQ8_0);
  EXPECT_EQ(WithWholeBlocks(DType::kQ4_0, 48), DType::kQ4_0);  // there is nothing else
}

TEST(RoundToNearest, WithPlainLevelsIsWhatEncodersWrite) {
  ThreadPool pool(2);
  const FloatMatrix matrix = RandomFloats(9, 256, /*seed=*/1);
  // Those whose encoder divides by the scale that is stored; the others may differ at ties.
  for (const DType dtype : {DType::kInt4G32, DType::kInt4G128, DType::kQ4_K, DType::kQ6_K}) {
    SCOPED_TRACE(Info(dtype).name);
    const uint32_t group = dtype == DType::kInt4G32 ? 32 : dtype == DType::kInt4G128 ? 128 : 0;
    const auto rounded =
        RoundToNearest(matrix, RowFormat::Create(dtype, group, matrix.columns).value(), {}, pool);
    std::vector<std::byte> want(rounded.codes().size());
    EncodeWeights(dtype, matrix.values, want);
    EXPECT_EQ(std::memcmp(rounded.codes().data(), want.data(), want.size()), 0);
  }
  const auto int8 = RoundToNearest(matrix, RowFormat::Create(DType::kInt8, 0, 256).value(), {}, pool);
  std::vector<std::byte> codes(256);
  for (size_t row = 0; row < matrix.rows; ++row) {
    EXPECT_EQ(EncodeInt8Row(matrix.Row(row), codes), int8.row_scales()[row]);
    EXPECT_EQ(std::memcmp(codes.data(), int8.codes().data() + row * 256, 256), 0);
  }
}

TEST(RoundToNearest, IsOffByAStepAtMostAndTheSameWithAnyNumberOfThreads) {
  ThreadPool one(1), three(3);
  const FloatMatrix matrix = RandomFloats(20, 256, /*seed=*/2);
  const std::vector<float> importance(256, 1.0f);
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << Info(c.dtype).name << " " << c.group);
    const RowFormat format = RowFormat::Create(c.dtype, c.group, 256).value();
    const QuantizedMatrix plain = RoundToNearest(matrix, format, {}, one),
                          again = RoundToNearest(matrix, format, {}, three),
                          searched = RoundToNearest(matrix, format, importance, one);
    EXPECT_EQ(std::memcmp(plain.codes().data(), again.codes().data(), plain.codes().size()), 0);
    double of_plain = 0, of_searched = 0, size = 0;
    const FloatMatrix a = plain.ToFloat(one), b = searched.ToFloat(three);
    for (size_t i = 0; i < matrix.values.size(); ++i) {
      of_plain += std::pow(a.values[i] - matrix.values[i], 2);
      of_searched += std::pow(b.values[i] - matrix.values[i], 2);
      size += std::pow(matrix.values[i], 2);
    }
    EXPECT_LT(of_plain, size * 0.02);
    EXPECT_LT(of_searched, 1.02 * of_plain);  // K formats round what was found
  }
}

}  // namespace
}  // namespace terrace
