#include <cstdlib>
#include <cstring>

#include "kernels/gemm/tile_gemm_cuda.h"
#include "kernels/gemm/tile_gemm_testing.h"
#include "tests/gpu/gemm_gpu_testing.h"

namespace terrace {
namespace {

struct Scratch : SplitScratch {
  Scratch(uint32_t rows, uint32_t columns, uint32_t tokens)
      : SplitScratch(TileGemmPartialFloats(rows, columns, tokens), TileGemmCounters(rows, tokens)) {}
  TileGemmScratch Get() const { return {partials.data(), arrived.data()}; }
};

std::vector<std::byte> TileGemm(const GpuMatrix& weights, const std::vector<uint16_t>& x,
                                const TestGemmOut& output, bool follows = false) {
  return OutputsOf(weights, x, output, [&](const GpuGemmArgs& args) {
    const Scratch scratch(weights.rows, weights.columns, args.tokens);
    CUDA_MUST(TileGemmCuda(args, scratch.Get(), {.follows = follows}));
    for (const uint32_t count : scratch.arrived.Get()) EXPECT_EQ(count, 0u);
  });
}

TEST(TileGemmGpu, EveryFormatAndKindIsItsRoundedValuesTimesX) {
  const struct { uint32_t rows, columns; } shapes[] = {{272, 2048}, {1024, 1088}};
  for (const auto& [rows, columns] : shapes) {
    for (const DType dtype : kTileGemmDTypes) {
      for (const TestGemmOut& output : kEveryGemmOut) {
        // Superblocks of Q4_K and Q6_K have 256 columns.
        const bool is_super = dtype == DType::kQ4_K || dtype == DType::kQ6_K || dtype == DType::kInt4G128;
        const uint32_t whole = is_super ? columns / 256 * 256 : columns;
        const TestGpuMatrix weights(dtype, rows, whole, /*seed=*/1, output.is_gated());
        const DeviceMatrix device(*weights.packed);
        const RoundedGpuMatrix rounded(weights.matrix());
        for (const uint32_t tokens : {1u, 17u, 32u, 61u, 64u, 100u}) {
          SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << rows << ", " << whole << "] "
                                          << output << " " << tokens << " tokens");
          const std::vector<uint16_t> x = RandomBF16(size_t{tokens} * whole, /*seed=*/tokens);
          const std::vector<std::byte> out = TileGemm(device.matrix, x, output, /*follows=*/tokens == 17);
          for (uint32_t token = 0; token < tokens; token += 9) {
            ExpectGemmRow(rounded.matrix, &x[size_t{token} * whole], output,
                          &out[token * RowBytes(rows, output)], 2.5f, /*stride=*/37);
          }
        }
      }
    }
  }
}

TEST(TileGemmGpu, LargeMatrices) {
  const struct {
    uint32_t rows, columns;
  } shapes[] = {{6144, 4096}, {28672, 1024}, {1024, 14336}, {32, 64}, {48, 384}};
  for (const DType dtype : {DType::kF32, DType::kQ4_0, DType::kInt8}) {
    for (const auto& [rows, columns] : shapes) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << rows << ", " << columns << "]");
      const TestGpuMatrix weights(dtype, rows, columns, /*seed=*/2);
      const DeviceMatrix device(*weights.packed);
      const RoundedGpuMatrix rounded(weights.matrix());
      constexpr uint32_t kTokens = 40;
      const std::vector<uint16_t> x = RandomBF16(size_t{kTokens} * columns, /*seed=*/3);
      const std::vector<std::byte> out = TileGemm(device.matrix, x, GpuGemmOut::kF32);
      for (const uint32_t token : {0u, kTokens - 1}) {
        ExpectGemmRow(rounded.matrix, &x[size_t{token} * columns], GpuGemmOut::kF32,
                      &out[size_t{4} * token * rows], 0, /*stride=*/rows / 32 + 1);
      }
    }
  }
}

TEST(TileGemmGpu, ATokenHasTheSameBitsInAnyBatch) {
  constexpr uint32_t kRows = 512, kColumns = 4096;
  for (const DType dtype : kTileGemmDTypes) {
    SCOPED_TRACE(Info(dtype).name);
    const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/4);
    const DeviceMatrix device(*weights.packed);
    const std::vector<uint16_t> token = RandomBF16(kColumns, /*seed=*/5);
    const size_t row_bytes = RowBytes(kRows, GpuGemmOut::kF32);
    const std::vector<std::byte> alone = TileGemm(device.matrix, token, GpuGemmOut::kF32);
    for (const uint32_t tokens : {1u, 2u, 8u, 13u, 32u, 33u, 64u, 128u}) {
      std::vector<uint16_t> x = RandomBF16(size_t{tokens} * kColumns, /*seed=*/tokens);
      for (const uint32_t place : {0u, tokens / 2, tokens - 1}) {
        std::ranges::copy(token, &x[size_t{place} * kColumns]);
      }
      const std::vector<std::byte> out = TileGemm(device.matrix, x, GpuGemmOut::kF32);
      for (const uint32_t place : {0u, tokens / 2, tokens - 1}) {
        EXPECT_EQ(std::memcmp(&out[place * row_bytes], alone.data(), row_bytes), 0)
            << tokens << " tokens, place " << place;
      }
    }
  }
}

TEST(TileGemmGpu, WhatItCannotDoIsRefused) {
  const GpuGemmArgs args{.tokens = 1,
                         .weights = {.format = GpuFormat::kW4, .rows = 32, .columns = 64, .group = 32}};
  GpuGemmArgs few_rows = args, odd_rows = args, odd_columns = args, bf16 = args, splits = args;
  few_rows.weights.rows = 16;
  odd_rows.weights.rows = 40;
  odd_columns.weights.columns = 96;
  bf16.weights.format = GpuFormat::kBF16;
  splits.weights.columns = 16384;
  ASSERT_GT(TileGemmShapeOf(32, 16384).splits, 1u);
  for (const GpuGemmArgs& bad : {few_rows, odd_rows, odd_columns, bf16, splits}) {
    EXPECT_EQ(TileGemmCuda(bad, {}, {}), cudaErrorInvalidValue);
  }
}

// Prints the time of the matrices of a layer of an 8B model; nothing is expected of it. With
// TERRACE_GPU_SPEED only: it is no test.
TEST(TileGemmGpu, Speed) {
  if (std::getenv("TERRACE_GPU_SPEED") == nullptr) GTEST_SKIP();
  cudaStream_t stream;
  CUDA_MUST(cudaStreamCreate(&stream));
  for (const SpeedFormat& format : kSpeedFormats) {
    for (const uint32_t tokens : {16u, 32u, 64u, 128u}) {
      double layer = 0;
      std::printf("%-6s %3u tokens:", format.name, tokens);
      for (const SpeedShape& shape : kSpeedShapes) {
        ColdMatrices matrices(format, shape);
        DeviceArray<uint16_t> x(size_t{tokens} * shape.columns), out(size_t{tokens} * shape.rows);
        const Scratch scratch(shape.rows, shape.columns, tokens);
        const double seconds = matrices.SecondsOf(stream, [&](const GpuMatrix& matrix) {
          CUDA_MUST(TileGemmCuda({.x = x.data(), .tokens = tokens, .weights = matrix, .out = out.data()},
                                 scratch.Get(), {.stream = stream, .follows = true}));
        });
        layer += seconds;
        std::printf("  [%5u, %5u] %6.2f us %4.0f GB/s", shape.rows, shape.columns, 1e6 * seconds,
                    1e-9 * static_cast<double>(matrices.bytes()) / seconds);
      }
      std::printf("  layer %6.2f us\n", 1e6 * layer);
    }
  }
  CUDA_MUST(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace terrace
