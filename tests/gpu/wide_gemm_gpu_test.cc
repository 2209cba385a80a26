#include <cstdlib>
#include <cstring>

#include "kernels/gemm/tile_gemm_testing.h"
#include "kernels/gemm/wide_gemm_cuda.h"
#include "tests/gpu/gemm_gpu_testing.h"

namespace terrace {
namespace {

struct Scratch : SplitScratch {
  Scratch(const WideGemmShape& shape, uint32_t rows, uint32_t tokens)
      : SplitScratch(WideGemmPartialFloats(shape, rows, tokens), WideGemmCounters(rows, tokens)) {}
  TileGemmScratch Get() const { return {partials.data(), arrived.data()}; }
};

std::vector<std::byte> WideGemm(const GpuMatrix& weights, const std::vector<uint16_t>& x,
                                const TestGemmOut& output, const WideGemmShape& shape, bool follows = false) {
  return OutputsOf(weights, x, output, [&](const GpuGemmArgs& args) {
    const Scratch scratch(shape, weights.rows, args.tokens);
    CUDA_MUST(WideGemmCuda(args, shape, scratch.Get(), {.follows = follows}));
    for (const uint32_t count : scratch.arrived.Get()) EXPECT_EQ(count, 0u);
  });
}

// What Q4_K's, Q6_K's and INT4's blocks, of 256 and 128 columns, leave of so many.
uint32_t WholeColumns(DType dtype, uint32_t columns) {
  const bool is_super = dtype == DType::kQ4_K || dtype == DType::kQ6_K || dtype == DType::kInt4G128;
  return is_super ? columns / 256 * 256 : columns;
}

TEST(WideGemmGpu, EveryFormatAndKindIsItsRoundedValuesTimesX) {
  if (!HasWarpgroups()) GTEST_SKIP() << "not sm_90";
  const struct {
    uint32_t rows, columns;
    WideGemmShape shape;
  } cases[] = {{272, 2048, {4, 1}}, {1024, 1088, {3, 4}}, {176, 1216, {1, 3}}};
  for (const auto& c : cases) {
    for (const DType dtype : kTileGemmDTypes) {
      for (const TestGemmOut& output : kEveryGemmOut) {
        const uint32_t columns = WholeColumns(dtype, c.columns);
        const TestGpuMatrix weights(dtype, c.rows, columns, /*seed=*/1, output.is_gated());
        const DeviceMatrix device(*weights.packed);
        const RoundedGpuMatrix rounded(weights.matrix(), WideValue);
        for (const uint32_t tokens : {1u, 17u, 61u, 90u, 128u, 300u}) {
          SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << c.rows << ", " << columns << "] "
                                          << output << " " << tokens << " tokens");
          const std::vector<uint16_t> x = RandomBF16(size_t{tokens} * columns, /*seed=*/tokens);
          const std::vector<std::byte> out =
              WideGemm(device.matrix, x, output, c.shape, /*follows=*/tokens == 17);
          for (uint32_t token = 0; token < tokens; token += 29) {
            ExpectGemmRow(rounded.matrix, &x[size_t{token} * columns], output,
                          &out[token * RowBytes(c.rows, output)], 2.5f, /*stride=*/37);
          }
        }
      }
    }
  }
}

TEST(WideGemmGpu, ScaledSumsAreOfExactValues) {
  if (!HasWarpgroups()) GTEST_SKIP() << "not sm_90";
  const struct {
    uint32_t rows, columns;
    WideGemmShape shape;
  } cases[] = {{272, 2048, {4, 1, true}}, {1024, 4096, {3, 4, true}}, {176, 1280, {1, 3, true}}};
  for (const auto& c : cases) {
    for (const TestGemmOut& output : kEveryGemmOut) {
      const TestGpuMatrix weights(DType::kInt4G128, c.rows, c.columns, /*seed=*/6, output.is_gated());
      const DeviceMatrix device(*weights.packed);
      const std::vector<uint16_t> x = RandomBF16(size_t{32} * c.columns, /*seed=*/7);
      const std::vector<std::byte> all = WideGemm(device.matrix, x, output, c.shape);
      const size_t row_bytes = RowBytes(c.rows, output);
      for (const uint32_t tokens : {1u, 16u, 23u, 32u}) {
        SCOPED_TRACE(testing::Message()
                     << "[" << c.rows << ", " << c.columns << "] " << output << " " << tokens << " tokens");
        const std::vector<std::byte> out =
            WideGemm(device.matrix, {x.begin(), x.begin() + size_t{tokens} * c.columns}, output, c.shape);
        EXPECT_EQ(std::memcmp(out.data(), all.data(), tokens * row_bytes), 0);
        for (uint32_t token = 0; token < tokens; token += 11) {
          ExpectGemmRow(weights.matrix(), &x[size_t{token} * c.columns], output, &out[token * row_bytes],
                        2.5f,
                        /*stride=*/37);
        }
      }
    }
  }
}

// In every shape that is worth timing.
TEST(WideGemmGpu, LargeMatrices) {
  if (!HasWarpgroups()) GTEST_SKIP() << "not sm_90";
  const struct {
    uint32_t rows, columns;
  } matrices[] = {{6144, 2048}, {28672, 256}, {512, 14336}, {16, 64}, {48, 384}};
  for (const DType dtype : {DType::kF32, DType::kQ4_0, DType::kInt8}) {
    for (const auto& [rows, columns] : matrices) {
      const TestGpuMatrix weights(dtype, rows, columns, /*seed=*/2);
      const DeviceMatrix device(*weights.packed);
      const RoundedGpuMatrix rounded(weights.matrix(), WideValue);
      constexpr uint32_t kTokens = 40;
      const std::vector<uint16_t> x = RandomBF16(size_t{kTokens} * columns, /*seed=*/3);
      for (const WideGemmShape& shape : WideGemmShapes(weights.matrix(), kTokens)) {
        SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << rows << ", " << columns << "] "
                                        << shape.row_groups << " groups, " << shape.splits << " splits");
        const std::vector<std::byte> out = WideGemm(device.matrix, x, GpuGemmOut::kF32, shape);
        for (const uint32_t token : {0u, kTokens - 1}) {
          ExpectGemmRow(rounded.matrix, &x[size_t{token} * columns], GpuGemmOut::kF32,
                        &out[size_t{4} * token * rows], 0, /*stride=*/rows / 32 + 1);
        }
      }
    }
  }
}

TEST(WideGemmGpu, ATokenHasTheSameBitsInAnyBatch) {
  if (!HasWarpgroups()) GTEST_SKIP() << "not sm_90";
  constexpr uint32_t kRows = 512, kColumns = 4096;
  for (const DType dtype : kTileGemmDTypes) {
    SCOPED_TRACE(Info(dtype).name);
    const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/4);
    const DeviceMatrix device(*weights.packed);
    const std::vector<uint16_t> token = RandomBF16(kColumns, /*seed=*/5);
    const size_t row_bytes = RowBytes(kRows, GpuGemmOut::kF32);
    const std::vector<std::byte> alone = WideGemm(device.matrix, token, GpuGemmOut::kF32, {1, 3});
    for (const uint32_t tokens : {2u, 13u, 32u, 33u, 96u, 128u, 200u}) {
      std::vector<uint16_t> x = RandomBF16(size_t{tokens} * kColumns, /*seed=*/tokens);
      for (const uint32_t place : {0u, tokens / 2, tokens - 1}) {
        std::ranges::copy(token, &x[size_t{place} * kColumns]);
      }
      const std::vector<std::byte> out =
          WideGemm(device.matrix, x, GpuGemmOut::kF32, {.row_groups = 1 + tokens % 4, .splits = 3});
      for (const uint32_t place : {0u, tokens / 2, tokens - 1}) {
        EXPECT_EQ(std::memcmp(&out[place * row_bytes], alone.data(), row_bytes), 0)
            << tokens << " tokens, place " << place;
      }
    }
  }
}

TEST(WideGemmGpu, WhatItCannotDoIsRefused) {
  const GpuGemmArgs args{.tokens = 1,
                         .weights = {.format = GpuFormat::kW4, .rows = 32, .columns = 256, .group = 32}};
  GpuGemmArgs odd_rows = args, odd_columns = args, bf16 = args;
  odd_rows.weights.rows = 40;
  odd_columns.weights.columns = 96;
  bf16.weights.format = GpuFormat::kBF16;
  for (const GpuGemmArgs& bad : {odd_rows, odd_columns, bf16}) {
    EXPECT_EQ(WideGemmCuda(bad, {1, 1}, {}, {}), cudaErrorInvalidValue);
  }
  for (const WideGemmShape& bad :
       {WideGemmShape{0, 1}, WideGemmShape{5, 1}, WideGemmShape{1, 0}, WideGemmShape{1, 3},
        WideGemmShape{1, 1, true}, WideGemmShape{1, 2}}) {  // the last without scratch
    EXPECT_EQ(WideGemmCuda(args, bad, {}, {}), cudaErrorInvalidValue) << bad.row_groups << bad.splits;
  }
}

// Prints the time of the matrices of a layer of an 8B model in every shape; nothing is expected of it. With
// TERRACE_GPU_SPEED only: it is no test.
TEST(WideGemmGpu, Speed) {
  if (std::getenv("TERRACE_GPU_SPEED") == nullptr || !HasWarpgroups()) GTEST_SKIP();
  cudaStream_t stream;
  CUDA_MUST(cudaStreamCreate(&stream));
  for (const SpeedFormat& format : kSpeedFormats) {
    for (const uint32_t tokens : {16u, 32u, 64u, 96u, 128u, 256u}) {
      double layer = 0;
      for (const SpeedShape& each : kSpeedShapes) {
        ColdMatrices matrices(format, each);
        DeviceArray<uint16_t> x(size_t{tokens} * each.columns), out(size_t{tokens} * each.rows);
        std::printf("%-6s %3u tokens [%5u, %5u]:", format.name, tokens, each.rows, each.columns);
        double best = 1;
        for (const WideGemmShape& shape : WideGemmShapes(matrices.matrix(), tokens)) {
          const Scratch scratch(shape, each.rows, tokens);
          const double seconds = matrices.SecondsOf(stream, [&](const GpuMatrix& matrix) {
            CUDA_MUST(WideGemmCuda({.x = x.data(), .tokens = tokens, .weights = matrix, .out = out.data()},
                                   shape, scratch.Get(), {.stream = stream, .follows = true}));
          });
          best = std::min(best, seconds);
          std::printf("  %u x %2u%s %6.2f us", shape.row_groups, shape.splits, shape.scales_sums ? "s" : "",
                      1e6 * seconds);
        }
        std::printf("  %4.0f GB/s\n", 1e-9 * static_cast<double>(matrices.bytes()) / best);
        layer += best;
      }
      std::printf("%-6s %3u tokens: a layer %6.2f us\n", format.name, tokens, 1e6 * layer);
    }
  }
  CUDA_MUST(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace terrace
