#include "kernels/gemm/dequantize_device.h"

#include "gtest/gtest.h"
#include "kernels/gemm/gpu_matrix_testing.h"

namespace terrace {
namespace {

void Dequantize(const GpuMatrix& matrix, uint16_t* out, uint64_t seed) {
  constexpr uint32_t kThreads = 64;  // fewer than on a device, for more blocks
  const auto run = [&](auto kernel, uint64_t threads) {
    const simt::Dim3 grid{static_cast<uint32_t>((threads + kThreads - 1) / kThreads), 1, 1};
    simt::RunSeeded(seed, grid, kThreads, 0, kernel, matrix, out);
  };
  const uint64_t tiles = TilesOf(matrix);
  if (matrix.format == GpuFormat::kE4M3) {
    run(DequantizeE4M3Kernel, uint64_t{matrix.rows} * matrix.columns / 8);
  } else if (matrix.format == GpuFormat::kSparse) {
    run(SpreadSparseKernel, tiles * (matrix.columns / kSparsePieceColumns) * 32);
  } else if (matrix.format == GpuFormat::kW4) {
    run(matrix.group == 32 ? DequantizeTilesKernel<W4Pieces<2>> : DequantizeTilesKernel<W4Pieces<1>>,
        tiles * (matrix.columns / kW4PieceColumns) * 32);
  } else {
    run(matrix.group == 16 ? DequantizeTilesKernel<W8Pieces<2>> : DequantizeTilesKernel<W8Pieces<1>>,
        tiles * (matrix.columns / kW8PieceColumns) * 32);
  }
}

TEST(Dequantize, EveryElementIsItsValueRoundedOnce) {
  const struct {
    DType dtype;
    bool to_e4m3;
  } cases[] = {{DType::kF32, true},      {DType::kQ8_0, false},     {DType::kQ4_0, false},
               {DType::kQ5_0, false},    {DType::kQ4_K, false},     {DType::kQ6_K, false},
               {DType::kInt4G32, false}, {DType::kInt4G128, false}, {DType::kInt8, false}};
  ThreadPool pool(2);
  for (const auto& c : cases) {
    SCOPED_TRACE(Info(c.dtype).name);
    for (const uint32_t rows : {1u, 16u, 43u}) {
      const FileWeights weights(c.dtype, rows, 768, /*seed=*/rows);
      const GpuMatrixParts parts{.parts = {&weights.matrix, 1}};
      GpuMatrix format = GpuMatrixOf(parts, pool);
      if (c.to_e4m3) format.format = GpuFormat::kE4M3;
      const PackedGpuMatrix packed(parts, format);
      for (const uint64_t seed : {0, 1}) {
        std::vector<uint16_t> out(rows * 768 + 8, 0xffff);
        Dequantize(packed.matrix, out.data(), seed);
        for (uint32_t i = 0; i < rows * 768; ++i) {
          ASSERT_EQ(out[i], BF16FromFloat(GpuElementAt(packed.matrix, i / 768, i % 768).value()))
              << "row " << i / 768 << " column " << i % 768;
        }
        for (uint32_t i = 0; i < 8; ++i) EXPECT_EQ(out[rows * 768 + i], 0xffff);
      }
    }
  }
}

TEST(Dequantize, WhatIsTwoOfFourIsItsValues) {
  ThreadPool pool(2);
  for (const uint32_t rows : {1u, 16u, 43u}) {
    FileWeights weights(DType::kBF16, rows, 320, /*seed=*/rows);
    KeepTwoOfFour(weights, /*seed=*/rows + 1);
    const GpuMatrixParts parts{.parts = {&weights.matrix, 1}};
    const PackedGpuMatrix packed(parts, GpuMatrixOf(parts, pool));
    ASSERT_EQ(packed.matrix.format, GpuFormat::kSparse);
    std::vector<uint16_t> out(rows * 320 + 8, 0xffff);
    Dequantize(packed.matrix, out.data(), /*seed=*/rows);
    for (uint32_t i = 0; i < rows * 320; ++i) {
      ASSERT_EQ(FloatFromBF16(out[i]), GpuElementAt(packed.matrix, i / 320, i % 320).value())
          << "row " << i / 320 << " column " << i % 320;
    }
    for (uint32_t i = 0; i < 8; ++i) EXPECT_EQ(out[rows * 320 + i], 0xffff);
  }
}

TEST(Dequantize, EveryCodeIsExact) {
  for (uint32_t code = 0; code < 256; ++code) {
    const uint32_t word = code | code << 8 | code << 16 | code << 24;
    for (uint32_t pair = 0; pair < 2; ++pair) {
      EXPECT_EQ(simt::BF16Low(W8Pair(word, pair)), static_cast<float>(code) / 64);
      EXPECT_EQ(simt::BF16High(W8Pair(word, pair)), static_cast<float>(code) / 64);
      if ((code & 0x7f) == 0x7f) continue;  // NaN, which no packed matrix has unless its row is
      EXPECT_EQ(simt::BF16Low(E4M3Pair(word, pair)), FloatFromE4M3(static_cast<uint8_t>(code)));
      EXPECT_EQ(simt::BF16High(E4M3Pair(word, pair)), FloatFromE4M3(static_cast<uint8_t>(code)));
    }
  }
  for (uint32_t code = 0; code < 16; ++code) {
    for (uint32_t pair = 0; pair < 4; ++pair) {
      const uint32_t bits = code << 3 | (15 - code) << 19,
                     word = bits << 4 * pair | (pair == 0 ? 0 : bits >> (32 - 4 * pair));
      EXPECT_EQ(simt::BF16Low(W4Pair(word, pair)), 16 + static_cast<float>(code));
      EXPECT_EQ(simt::BF16High(W4Pair(word, pair)), 16 + static_cast<float>(15 - code));
    }
  }
}

}  // namespace
}  // namespace terrace
