#include "kernels/gemm/int8_gemm_device.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "kernels/gemm/int8_gemm_testing.h"

namespace terrace {
namespace {

constexpr float kBefore = 2.5f;

std::vector<std::byte> Product(const GpuMatrix& matrix, const Int8Rows& x, const TestGemmOut& output,
                               uint64_t seed) {
  const auto tokens = static_cast<uint32_t>(x.scales.size());
  const simt::Dim3 grid{Int8GemmTokenBlocks(tokens), Int8GemmRowBlocks(matrix.rows), 1};
  return GemmOutput({.tokens = tokens, .weights = matrix, .kind = output.kind, .gate = output.gate}, kBefore,
                    [&](const GpuGemmArgs& args) {
                      simt::RunSeeded(seed, grid, kInt8Threads, kInt8SharedBytes, Int8GemmKernel, args,
                                      x.rows());
                    });
}

TEST(Int8Gemm, IsItsValuesTimesX) {
  const struct {
    uint32_t rows, columns, tokens;
  } cases[] = {{16, 64, 1},      // a stage, most of the block is beyond the matrix
               {128, 128, 128},  // a whole block
               {144, 256, 20},   // as many stages as slots; a tile is left over
               {80, 576, 70},    // more stages; the tokens of two warps
               {64, 320, 131}};  // two blocks of tokens
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << "[" << c.rows << ", " << c.columns << "] " << c.tokens << " tokens");
    const TestGpuMatrix weights(DType::kInt8, c.rows, c.columns, /*seed=*/c.rows + c.tokens);
    ASSERT_TRUE(weights.matrix().has_row_scales);
    const Int8Rows x(c.tokens, c.columns, /*seed=*/c.tokens);
    const std::vector<std::byte> out = Product(weights.matrix(), x, GpuGemmOut::kF32, /*seed=*/c.tokens);
    for (uint32_t token = 0; token < c.tokens; token += 3) {
      ExpectInt8GemmRow(weights.matrix(), x, token, GpuGemmOut::kF32, &out[size_t{token} * c.rows * 4], 0);
    }
  }
}

TEST(Int8Gemm, EveryKindOfOutput) {
  constexpr uint32_t kRows = 48, kColumns = 256, kTokens = 13;
  for (const TestGemmOut& output : kEveryGemmOut) {
    SCOPED_TRACE(testing::Message() << output);
    const size_t row_bytes = RowBytes(kRows, output);
    const TestGpuMatrix weights(DType::kInt8, kRows, kColumns, /*seed=*/3, output.is_gated());
    const Int8Rows x(kTokens, kColumns, /*seed=*/4);
    const std::vector<std::byte> out = Product(weights.matrix(), x, output, /*seed=*/5);
    for (uint32_t token = 0; token < kTokens; ++token) {
      ExpectInt8GemmRow(weights.matrix(), x, token, output, &out[token * row_bytes], kBefore);
    }
  }
}

// Sums are exact where they are largest: all codes -127 and -128.
TEST(Int8Gemm, LargestSumsAreExact) {
  constexpr uint32_t kColumns = 4096;
  FileWeights file(DType::kInt8, 16, kColumns, /*seed=*/6);
  std::ranges::fill(file.bytes, std::byte{0x80});
  std::ranges::fill(file.row_scales, 1.0f);
  ThreadPool pool(2);
  const GpuMatrixParts parts{.parts = {&file.matrix, 1}};
  const PackedGpuMatrix weights(parts, GpuMatrixOf(parts, pool));
  Int8Rows x(2, kColumns, /*seed=*/7);
  std::ranges::fill(x.codes, static_cast<uint8_t>(-127));
  std::ranges::fill(x.scales, 1.0f);
  const std::vector<std::byte> out = Product(weights.matrix, x, GpuGemmOut::kF32, 0);
  for (uint32_t i = 0; i < 32; ++i) EXPECT_EQ(LoadUnaligned<float>(&out[4 * i]), 127.0f * 128 * kColumns);
}

}  // namespace
}  // namespace terrace
