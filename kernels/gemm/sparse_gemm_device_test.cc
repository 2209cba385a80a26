#include "kernels/gemm/sparse_gemm_device.h"

#include <algorithm>
#include <cstring>

#include "gtest/gtest.h"
#include "kernels/gemm/gpu_gemm_testing.h"

namespace terrace {
namespace {

constexpr DType kTwoOfFour = DType::kF16;  // what TestGpuMatrix makes kSparse of

constexpr float kBefore = 2.5f;

std::vector<std::byte> Product(const GpuMatrix& matrix, const std::vector<uint16_t>& x,
                               const TestGemmOut& output, uint64_t seed) {
  const auto tokens = static_cast<uint32_t>(x.size() / matrix.columns);
  const simt::Dim3 grid{SparseGemmTokenBlocks(tokens), SparseGemmRowBlocks(matrix.rows), 1};
  return GemmOutput(
      {.x = x.data(), .tokens = tokens, .weights = matrix, .kind = output.kind, .gate = output.gate}, kBefore,
      [&](const GpuGemmArgs& args) {
        simt::RunSeeded(seed, grid, kSparseThreads, kSparseSharedBytes, SparseGemmKernel, args);
      });
}

TEST(SparseGemm, IsItsValuesTimesX) {
  const struct {
    uint32_t rows, columns, tokens;
  } cases[] = {{16, 64, 1},      // a stage, most of the block is beyond the matrix
               {128, 128, 128},  // a whole block
               {144, 192, 20},   // as many stages as slots; a tile is left over
               {80, 576, 70},    // more stages; the tokens of two warps
               {64, 320, 131}};  // two blocks of tokens
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << "[" << c.rows << ", " << c.columns << "] " << c.tokens << " tokens");
    const TestGpuMatrix weights(kTwoOfFour, c.rows, c.columns, /*seed=*/c.rows + c.tokens);
    ASSERT_EQ(weights.matrix().format, GpuFormat::kSparse);
    const std::vector<uint16_t> x = RandomBF16(size_t{c.tokens} * c.columns, /*seed=*/c.tokens);
    const std::vector<std::byte> out = Product(weights.matrix(), x, GpuGemmOut::kF32, /*seed=*/c.tokens);
    for (uint32_t token = 0; token < c.tokens; token += 3) {
      ExpectGemmRow(weights.matrix(), &x[size_t{token} * c.columns], GpuGemmOut::kF32,
                    &out[size_t{token} * c.rows * 4], 0);
    }
  }
}

TEST(SparseGemm, EveryKindOfOutput) {
  constexpr uint32_t kRows = 48, kColumns = 256, kTokens = 13;
  for (const TestGemmOut& output : kEveryGemmOut) {
    SCOPED_TRACE(testing::Message() << output);
    const size_t row_bytes = RowBytes(kRows, output);
    const TestGpuMatrix weights(kTwoOfFour, kRows, kColumns, /*seed=*/3, output.is_gated());
    const std::vector<uint16_t> x = RandomBF16(kTokens * kColumns, /*seed=*/4);
    const std::vector<std::byte> out = Product(weights.matrix(), x, output, /*seed=*/5);
    for (uint32_t token = 0; token < kTokens; ++token) {
      ExpectGemmRow(weights.matrix(), &x[token * kColumns], output, &out[token * row_bytes], kBefore);
    }
  }
}

TEST(SparseGemm, ATokenHasTheSameBitsInAnyBatch) {
  constexpr uint32_t kRows = 32, kColumns = 320;
  const TestGpuMatrix weights(kTwoOfFour, kRows, kColumns, /*seed=*/6);
  const std::vector<uint16_t> token = RandomBF16(kColumns, /*seed=*/7);
  const auto alone = Product(weights.matrix(), token, GpuGemmOut::kF32, 0);
  for (const uint32_t tokens : {9u, 66u, 130u}) {
    std::vector<uint16_t> x = RandomBF16(size_t{tokens} * kColumns, /*seed=*/8);
    for (const uint32_t place : {0u, 5u, tokens - 1}) {
      std::copy(token.begin(), token.end(), x.begin() + static_cast<ptrdiff_t>(place * kColumns));
    }
    const auto out = Product(weights.matrix(), x, GpuGemmOut::kF32, /*seed=*/tokens);
    for (const uint32_t place : {0u, 5u, tokens - 1}) {
      EXPECT_EQ(std::memcmp(&out[place * kRows * 4], alone.data(), alone.size()), 0)
          << tokens << " tokens, place " << place;
    }
  }
}

// What is kept goes to its two places, the rest is 0.
TEST(SparseGemm, SpreadsAFourToItsPlaces) {
  for (uint32_t first = 0; first < 4; ++first) {
    for (uint32_t second = first + 1; second < 4; ++second) {
      uint32_t want[4] = {};
      want[first] = 0x1234;
      want[second] = 0xabcd;
      const uint2 got = SpreadFour(0xabcd1234, first | second << 2 | 0xfff0);  // what is above is another's
      EXPECT_EQ(got.x, want[0] | want[1] << 16);
      EXPECT_EQ(got.y, want[2] | want[3] << 16);
    }
  }
}

}  // namespace
}  // namespace terrace
