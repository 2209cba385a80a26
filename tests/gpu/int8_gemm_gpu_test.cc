// Products of int8 weights and activations on a GPU, by the rules of their test on the emulator, at the sizes
// of real models too.
#include "kernels/gemm/int8_gemm_cuda.h"

#include "kernels/gemm/int8_gemm_testing.h"
#include "tests/gpu/gemm_gpu_testing.h"

namespace terrace {
namespace {

std::vector<std::byte> Int8Gemm(const GpuMatrix& weights, const Int8Rows& x, const TestGemmOut& output,
                                bool follows) {
  const DeviceArray<uint8_t> codes(x.codes);
  const DeviceArray<float> scales(x.scales);
  // OutputsOf counts tokens by an x of bf16, which is not read.
  const std::vector<uint16_t> unread(x.codes.size());
  return OutputsOf(weights, unread, output, [&](const GpuGemmArgs& args) {
    CUDA_MUST(Int8GemmCuda(args, {codes.data(), scales.data()}, {.follows = follows}));
  });
}

TEST(Int8GemmGpu, EveryKindIsWithinItsBound) {
  for (const TestGemmOut& output : kEveryGemmOut) {
    for (const auto& [rows, columns] : {SpeedShape{16, 64}, {208, 2048}, {256, 448}}) {
      const TestGpuMatrix weights(DType::kInt8, rows, columns, /*seed=*/1, output.is_gated());
      const DeviceMatrix device(*weights.packed);
      for (const uint32_t tokens : {1u, 7u, 65u, 128u, 300u}) {
        SCOPED_TRACE(testing::Message()
                     << output << " [" << rows << ", " << columns << "] " << tokens << " tokens");
        const Int8Rows x(tokens, columns, /*seed=*/tokens);
        const std::vector<std::byte> out = Int8Gemm(device.matrix, x, output, /*follows=*/tokens == 65);
        for (uint32_t token = 0; token < tokens; token += 5) {
          ExpectInt8GemmRow(weights.matrix(), x, token, output, &out[token * RowBytes(rows, output)], 2.5f,
                            /*stride=*/7);
        }
      }
    }
  }
}

TEST(Int8GemmGpu, LargeMatrices) {
  for (const auto& [rows, columns] : kSpeedShapes) {
    SCOPED_TRACE(testing::Message() << "[" << rows << ", " << columns << "]");
    const TestGpuMatrix weights(DType::kInt8, rows, columns, /*seed=*/2);
    const DeviceMatrix device(*weights.packed);
    const Int8Rows x(140, columns, /*seed=*/3);
    const std::vector<std::byte> out = Int8Gemm(device.matrix, x, GpuGemmOut::kF32, false);
    for (const uint32_t token : {0u, 127u, 139u}) {
      ExpectInt8GemmRow(weights.matrix(), x, token, GpuGemmOut::kF32, &out[size_t{token} * rows * 4], 0,
                        /*stride=*/rows / 16 + 1);
    }
  }
}

TEST(Int8GemmGpu, WhatItCannotDoIsRefused) {
  const GpuGemmArgs args{
      .tokens = 1,
      .weights = {.format = GpuFormat::kW8, .rows = 16, .columns = 64, .group = 128, .has_row_scales = true}};
  GpuGemmArgs other = args, groups = args, odd_rows = args, odd_columns = args, wide = args, normed = args;
  other.weights.format = GpuFormat::kBF16;
  groups.weights.has_row_scales = false;
  odd_rows.weights.rows = 24;
  odd_columns.weights.columns = 96;
  wide.weights.columns = 131'136;
  const float norm = 1;
  normed.next_norm = &norm;
  for (const GpuGemmArgs& each : {other, groups, odd_rows, odd_columns, wide, normed}) {
    EXPECT_EQ(Int8GemmCuda(each, {}, {}), cudaErrorInvalidValue);
  }
}

}  // namespace
}  // namespace terrace
