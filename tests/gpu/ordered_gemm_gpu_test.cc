// ordered_gemm on a GPU against stream_gemm, whose bits it promises.
#include "kernels/gemm/ordered_gemm_cuda.h"

#include <cstring>
#include <functional>

#include "kernels/gemm/gpu_gemm_testing.h"
#include "kernels/gemm/stream_gemm_cuda.h"
#include "tests/gpu/device_data.h"
#include "tests/gpu/gpu_testing.h"

namespace terrace {
namespace {

// What `multiply` makes; kAddF32 adds to other values in each place. 64 bytes behind it stay as they are.
std::vector<std::byte> Product(const GpuMatrix& weights, const DeviceArray<uint16_t>& x, uint32_t tokens,
                               const TestGemmOut& output,
                               const std::function<cudaError_t(const GpuGemmArgs& args)>& multiply) {
  DeviceArray<std::byte> out(tokens * RowBytes(weights.rows, output) + 64);
  if (output.kind == GpuGemmOut::kAddF32) {
    std::vector<std::byte> bytes(tokens * RowBytes(weights.rows, output));
    for (size_t i = 0; i < bytes.size() / 4; ++i) {
      const float before = static_cast<float>(i % 1013) / 7 - 60;
      std::memcpy(&bytes[4 * i], &before, 4);
    }
    out.Set(bytes);
  }
  CUDA_MUST(multiply({.x = x.data(),
                      .tokens = tokens,
                      .weights = weights,
                      .out = out.data(),
                      .kind = output.kind,
                      .gate = output.gate}));
  return out.Get();
}

void ExpectStreamGemmsBits(const GpuMatrix& weights, const DeviceArray<uint16_t>& x, uint32_t tokens,
                           const TestGemmOut& output) {
  const std::vector<std::byte> want = Product(weights, x, tokens, output, [&](const GpuGemmArgs& args) {
    return StreamGemmCuda(args, DefaultStreamGemmShape(weights.rows, weights.columns, weights.format, tokens),
                          {});
  });
  for (const OrderedGemmTile tile : {OrderedGemmTile::kSmall, OrderedGemmTile::kLarge}) {
    const std::vector<std::byte> got = Product(weights, x, tokens, output, [&](const GpuGemmArgs& args) {
      return OrderedGemmCuda(args, tile, {.follows = tile == OrderedGemmTile::kLarge});
    });
    ASSERT_EQ(got.size(), want.size());
    size_t differ = 0;
    for (size_t i = 0; i < got.size(); ++i) differ += got[i] != want[i] ? 1 : 0;
    EXPECT_EQ(differ, 0u) << "bytes, " << tokens << " tokens, output " << output << ", "
                          << (tile == OrderedGemmTile::kLarge ? "large" : "small");
  }
}

TEST(OrderedGemmGpu, HasTheBitsOfStreamGemm) {
  constexpr uint32_t kRows = 208, kColumns = 2048;
  for (const DType dtype : kGpuMatrixDTypes) {
    for (const TestGemmOut& output : kEveryGemmOut) {
      SCOPED_TRACE(Info(dtype).name);
      const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/1, output.is_gated());
      const DeviceMatrix device(*weights.packed);
      for (const uint32_t tokens : {1u, 8u, 33u, 128u, 300u}) {
        const DeviceArray<uint16_t> x(RandomBF16(size_t{tokens} * kColumns, /*seed=*/tokens));
        ExpectStreamGemmsBits(device.matrix, x, tokens, output);
      }
    }
  }
}

// Four, eight and sixteen parts, whose pieces do not always come out even.
TEST(OrderedGemmGpu, HasTheBitsOfStreamGemmAtModelsShapes) {
  const struct {
    uint32_t rows, columns;
  } shapes[] = {{2560, 4096}, {512, 8192}, {2560, 1408}, {64, 64}, {48, 384}};
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kQ4_0, DType::kInt8}) {
    for (const auto& [rows, columns] : shapes) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << rows << ", " << columns << "]");
      const TestGpuMatrix weights(dtype, rows, columns, /*seed=*/2);
      const DeviceMatrix device(*weights.packed);
      const DeviceArray<uint16_t> x(RandomBF16(size_t{200} * columns, /*seed=*/3));
      ExpectStreamGemmsBits(device.matrix, x, 200, GpuGemmOut::kF32);
    }
  }
}

TEST(OrderedGemmGpu, WhatItCannotDoIsRefused) {
  const GpuGemmArgs args{.tokens = 1, .weights = {.rows = 16, .columns = 64}};
  GpuGemmArgs odd_rows = args, odd_columns = args, normed = args;
  odd_rows.weights.rows = 24;
  odd_columns.weights.columns = 96;
  const float norm = 1;
  normed.next_norm = &norm;
  for (const GpuGemmArgs& each : {odd_rows, odd_columns, normed}) {
    EXPECT_EQ(OrderedGemmCuda(each, OrderedGemmTile::kSmall, {}), cudaErrorInvalidValue);
  }
}

}  // namespace
}  // namespace terrace
