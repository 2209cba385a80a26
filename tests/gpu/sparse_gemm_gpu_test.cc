// Products with 2:4 weights on a GPU, by the rules of their test on the emulator, at the sizes of real models
// too. How 2:4 weights are packed, spread and multiplied with few tokens is part of the tests of those
// kernels.
#include "kernels/gemm/sparse_gemm_cuda.h"

#include "kernels/gemm/dequantize_cuda.h"
#include "tests/gpu/gemm_gpu_testing.h"

namespace terrace {
namespace {

constexpr DType kTwoOfFour = DType::kF16;  // what TestGpuMatrix makes kSparse of

std::vector<std::byte> SparseGemm(const GpuMatrix& weights, const std::vector<uint16_t>& x,
                                  const TestGemmOut& output, bool follows) {
  return OutputsOf(weights, x, output,
                   [&](const GpuGemmArgs& args) { CUDA_MUST(SparseGemmCuda(args, {.follows = follows})); });
}

TEST(SparseGemmGpu, EveryKindIsWithinItsBound) {
  for (const TestGemmOut& output : kEveryGemmOut) {
    for (const auto& [rows, columns] : {SpeedShape{16, 64}, {208, 2048}, {256, 448}}) {
      if (output.is_gated() && rows % 16 != 0) continue;
      const TestGpuMatrix weights(kTwoOfFour, rows, columns, /*seed=*/1, output.is_gated());
      const DeviceMatrix device(*weights.packed);
      for (const uint32_t tokens : {1u, 7u, 65u, 128u, 300u}) {
        SCOPED_TRACE(testing::Message()
                     << output << " [" << rows << ", " << columns << "] " << tokens << " tokens");
        const std::vector<uint16_t> x = RandomBF16(size_t{tokens} * columns, /*seed=*/tokens);
        const std::vector<std::byte> out = SparseGemm(device.matrix, x, output, /*follows=*/tokens == 65);
        for (uint32_t token = 0; token < tokens; token += 5) {
          ExpectGemmRow(weights.matrix(), &x[size_t{token} * columns], output,
                        &out[token * RowBytes(rows, output)], 2.5f, /*stride=*/7);
        }
      }
    }
  }
}

TEST(SparseGemmGpu, LargeMatrices) {
  for (const auto& [rows, columns] : kSpeedShapes) {
    SCOPED_TRACE(testing::Message() << "[" << rows << ", " << columns << "]");
    const TestGpuMatrix weights(kTwoOfFour, rows, columns, /*seed=*/2);
    const DeviceMatrix device(*weights.packed);
    const std::vector<uint16_t> x = RandomBF16(size_t{140} * columns, /*seed=*/3);
    const std::vector<std::byte> out = SparseGemm(device.matrix, x, GpuGemmOut::kF32, false);
    for (const uint32_t token : {0u, 127u, 139u}) {
      ExpectGemmRow(weights.matrix(), &x[size_t{token} * columns], GpuGemmOut::kF32,
                    &out[size_t{token} * rows * 4], 0, /*stride=*/rows / 16 + 1);
    }
  }
}

TEST(SparseGemmGpu, SpreadsToItsValues) {
  for (const auto& [rows, columns] : {SpeedShape{16, 64}, {240, 1088}}) {
    const TestGpuMatrix weights(kTwoOfFour, rows, columns, /*seed=*/4);
    const DeviceMatrix device(*weights.packed);
    const DeviceArray<uint16_t> out(size_t{rows} * columns);
    CUDA_MUST(DequantizeCuda(device.matrix, out.data(), {.follows = true}));
    const std::vector<uint16_t> got = out.Get();
    for (uint32_t i = 0; i < rows * columns; ++i) {
      ASSERT_EQ(FloatFromBF16(got[i]), GpuElementAt(weights.matrix(), i / columns, i % columns).value())
          << "row " << i / columns << " column " << i % columns;
    }
  }
}

TEST(SparseGemmGpu, WhatItCannotDoIsRefused) {
  const GpuGemmArgs args{.tokens = 1, .weights = {.format = GpuFormat::kSparse, .rows = 16, .columns = 64}};
  GpuGemmArgs dense = args, odd_rows = args, odd_columns = args, normed = args;
  dense.weights.format = GpuFormat::kBF16;
  odd_rows.weights.rows = 24;
  odd_columns.weights.columns = 96;
  const float norm = 1;
  normed.next_norm = &norm;
  for (const GpuGemmArgs& each : {dense, odd_rows, odd_columns, normed}) {
    EXPECT_EQ(SparseGemmCuda(each, {}), cudaErrorInvalidValue);
  }
}

}  // namespace
}  // namespace terrace
