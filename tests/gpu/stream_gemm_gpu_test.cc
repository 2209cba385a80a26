#include <cstdlib>

#include "kernels/gemm/dequantize_cuda.h"
#include "kernels/gemm/stream_gemm_cuda.h"
#include "tests/gpu/gemm_gpu_testing.h"

namespace terrace {
namespace {

std::vector<std::byte> StreamGemm(const GpuMatrix& weights, const std::vector<uint16_t>& x,
                                  const TestGemmOut& output, const StreamGemmShape& shape,
                                  bool follows = false) {
  return OutputsOf(weights, x, output, [&](const GpuGemmArgs& args) {
    CUDA_MUST(StreamGemmCuda(args, shape, {.follows = follows}));
  });
}

TEST(StreamGemmGpu, EveryFormatAndKindIsWithinItsBound) {
  constexpr uint32_t kRows = 256, kColumns = 2048;
  for (const DType dtype : kGpuMatrixDTypes) {
    for (const TestGemmOut& output : kEveryGemmOut) {
      const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/1, output.is_gated());
      const DeviceMatrix device(*weights.packed);
      for (const uint32_t tokens : {1u, 7u, 16u, 27u, 70u}) {
        const std::vector<uint16_t> x = RandomBF16(size_t{tokens} * kColumns, /*seed=*/tokens);
        for (const StreamGemmShape& shape : StreamGemmShapes(tokens)) {
          SCOPED_TRACE(testing::Message() << Info(dtype).name << " " << output << " " << tokens << " tokens "
                                          << shape.warps << " warps " << shape.row_tiles << " row tiles");
          const std::vector<std::byte> out =
              StreamGemm(device.matrix, x, output, shape, /*follows=*/tokens == 16);
          for (uint32_t token = 0; token < tokens; token += 5) {
            ExpectGemmRow(weights.matrix(), &x[size_t{token} * kColumns], output,
                          &out[token * RowBytes(kRows, output)], 2.5f, /*stride=*/37);
          }
        }
      }
    }
  }
}

TEST(StreamGemmGpu, LargeMatrices) {
  const struct {
    uint32_t rows, columns;
  } shapes[] = {{6144, 4096}, {4096, 14336}, {32 * 1024, 1024}, {64, 64}, {48, 384}};
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kQ4_0, DType::kInt8}) {
    for (const auto& [rows, columns] : shapes) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << rows << ", " << columns << "]");
      const TestGpuMatrix weights(dtype, rows, columns, /*seed=*/2);
      const DeviceMatrix device(*weights.packed);
      const std::vector<uint16_t> x = RandomBF16(size_t{3} * columns, /*seed=*/3);
      const StreamGemmShape shape = DefaultStreamGemmShape(rows, columns, device.matrix.format, 3);
      const std::vector<std::byte> out = StreamGemm(device.matrix, x, GpuGemmOut::kF32, shape);
      ExpectGemmRow(weights.matrix(), &x[size_t{2} * columns], GpuGemmOut::kF32, &out[size_t{8} * rows], 0,
                    /*stride=*/rows / 16 + 1);
    }
  }
}

TEST(StreamGemmGpu, ATokenHasTheSameBitsInAnyBatch) {
  constexpr uint32_t kRows = 512, kColumns = 4096;
  for (const DType dtype : kGpuMatrixDTypes) {
    SCOPED_TRACE(Info(dtype).name);
    const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/4);
    const DeviceMatrix device(*weights.packed);
    const std::vector<uint16_t> token = RandomBF16(kColumns, /*seed=*/5);
    const size_t row_bytes = RowBytes(kRows, GpuGemmOut::kF32);
    for (const StreamGemmShape& shape : StreamGemmShapes(1)) {
      const std::vector<std::byte> alone =
          StreamGemm(device.matrix, token, GpuGemmOut::kF32, {.warps = shape.warps, .row_tiles = 1});
      for (const uint32_t tokens : {1u, 2u, 8u, 13u, 16u, 32u, 64u}) {
        std::vector<uint16_t> x = RandomBF16(size_t{tokens} * kColumns, /*seed=*/tokens);
        for (const uint32_t place : {0u, tokens / 2, tokens - 1}) {
          std::ranges::copy(token, &x[size_t{place} * kColumns]);
        }
        const std::vector<std::byte> out = StreamGemm(device.matrix, x, GpuGemmOut::kF32, shape);
        for (const uint32_t place : {0u, tokens / 2, tokens - 1}) {
          EXPECT_EQ(std::memcmp(&out[place * row_bytes], alone.data(), row_bytes), 0)
              << tokens << " tokens, place " << place << ", " << shape.warps << " warps, " << shape.row_tiles;
        }
      }
    }
  }
}

TEST(StreamGemmGpu, ANormGoesAlongWithTheResidualStream) {
  const struct { uint32_t hidden, columns, rows; } sizes[] = {{192, 128, 32}, {2048, 1024, 272}};
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kQ4_0, DType::kQ8_0}) {
    for (const auto& [hidden_size, columns, rows] : sizes) {
      for (const uint32_t tokens : {1u, 3u, kMostNormTokens}) {
        const NormedProducts products(dtype, tokens, hidden_size, columns, rows);
        const DeviceMatrix first(*products.first.packed), second(*products.second.packed);
        const DeviceArray<uint16_t> x(products.x);
        const DeviceArray<float> norm(products.norm);
        for (const StreamGemmShape& shape : StreamGemmShapes(tokens)) {
          SCOPED_TRACE(testing::Message()
                       << Info(dtype).name << " [" << rows << ", " << hidden_size << "] " << tokens
                       << " tokens " << shape.warps << " warps " << shape.row_tiles << " row tiles "
                       << shape.per_sm << " blocks of a multiprocessor");
          const DeviceArray<float> hidden(products.before), squares(tokens * hidden_size / kTileRows),
              out(size_t{tokens} * rows), undivided(size_t{tokens} * rows);
          const DeviceArray<uint16_t> next_x(size_t{tokens} * hidden_size);
          CUDA_MUST(StreamGemmCuda({.x = x.data(),
                                    .tokens = tokens,
                                    .weights = first.matrix,
                                    .out = hidden.data(),
                                    .kind = GpuGemmOut::kAddF32,
                                    .next_norm = norm.data(),
                                    .next_x = next_x.data(),
                                    .next_squares = squares.data()},
                                   shape, {}));
          GpuGemmArgs next = {.x = next_x.data(),
                              .tokens = tokens,
                              .weights = second.matrix,
                              .out = out.data(),
                              .kind = GpuGemmOut::kF32,
                              .x_squares = squares.data(),
                              .epsilon = NormedProducts::kEpsilon};
          CUDA_MUST(StreamGemmCuda(next, shape, {.follows = true}));
          next.out = undivided.data();
          next.x_squares = nullptr;
          CUDA_MUST(StreamGemmCuda(next, shape, {}));
          products.ExpectRight(hidden.Get(), next_x.Get(), undivided.Get(), out.Get());
        }
      }
    }
  }
}

TEST(StreamGemmGpu, WhatItCannotDoIsRefused) {
  const GpuGemmArgs args{.tokens = 1, .weights = {.rows = 16, .columns = 64}};
  GpuGemmArgs odd_rows = args, odd_columns = args;
  odd_rows.weights.rows = 24;
  odd_columns.weights.columns = 96;
  EXPECT_EQ(StreamGemmCuda(odd_rows, {}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(StreamGemmCuda(odd_columns, {}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(StreamGemmCuda(args, {.warps = 5}, {}), cudaErrorInvalidValue);
}

TEST(DequantizeGpu, EveryElementIsItsValueRoundedOnce) {
  constexpr uint32_t kRows = 136, kColumns = 1280;
  for (const DType dtype : kGpuMatrixDTypes) {
    if (dtype == DType::kBF16) continue;
    SCOPED_TRACE(Info(dtype).name);
    const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/6);
    const DeviceMatrix device(*weights.packed);
    DeviceArray<uint16_t> out(kRows * kColumns);
    CUDA_MUST(DequantizeCuda(device.matrix, out.data(), {}));
    const std::vector<uint16_t> got = out.Get();
    for (uint32_t i = 0; i < kRows * kColumns; ++i) {
      ASSERT_EQ(got[i], BF16FromFloat(GpuElementAt(weights.matrix(), i / kColumns, i % kColumns).value()))
          << i;
    }
  }
}

// Prints bytes per second of reading weights, of each shape; nothing is expected of them. Several copies of a
// matrix take turns, so that none is found in L2. With TERRACE_GPU_SPEED only: it is no test.
TEST(StreamGemmGpu, Speed) {
  if (std::getenv("TERRACE_GPU_SPEED") == nullptr) GTEST_SKIP();
  constexpr size_t kCold = size_t{256} << 20;
  const struct {
    const char* name;
    GpuFormat format;
    uint32_t group;
  } formats[] = {{"bf16", GpuFormat::kBF16, 0},
                 {"e4m3", GpuFormat::kE4M3, 0},
                 {"w4g32", GpuFormat::kW4, 32},
                 {"w4g128", GpuFormat::kW4, 128},
                 {"w8g32", GpuFormat::kW8, 32}};
  const struct {
    uint32_t rows, columns;
  } shapes[] = {{4096, 4096}, {6144, 4096}, {28672, 4096}, {4096, 14336}, {128256, 4096}};
  cudaStream_t stream;
  CUDA_MUST(cudaStreamCreate(&stream));
  {
    DeviceArray<std::byte> from(2 * kCold), to(2 * kCold);
    const double seconds = SecondsOf(stream, 5, 4, [&] {
      CUDA_MUST(cudaMemcpyAsync(to.data(), from.data(), 2 * kCold, cudaMemcpyDeviceToDevice, stream));
    });
    std::printf("copy: %.0f GB/s\n", 4e-9 * kCold / seconds);
  }
  for (const auto& format : formats) {
    for (const auto& [rows, columns] : shapes) {
      GpuMatrix matrix{.format = format.format, .rows = rows, .columns = columns, .group = format.group};
      const size_t bytes = GpuCodeBytes(matrix) + GpuScaleBytes(matrix);
      const size_t copies = (kCold + bytes - 1) / bytes;
      DeviceArray<std::byte> memory(copies * bytes);
      CUDA_MUST(cudaMemset(memory.data(), 0, copies * bytes));
      for (const uint32_t tokens : {1u, 8u, 16u, 32u, 64u}) {
        DeviceArray<uint16_t> x(size_t{tokens} * columns), out(size_t{tokens} * rows);
        std::printf("%-6s [%6u, %5u] %2u tokens:", format.name, rows, columns, tokens);
        for (const StreamGemmShape& shape : StreamGemmShapes(tokens)) {
          size_t turn = 0;
          const double seconds = SecondsOf(stream, 3, static_cast<int>(2 * copies), [&] {
            const std::byte* at = memory.data() + turn++ % copies * bytes;
            matrix.codes = at;
            matrix.scales = at + GpuCodeBytes(matrix);
            CUDA_MUST(StreamGemmCuda({.x = x.data(), .tokens = tokens, .weights = matrix, .out = out.data()},
                                     shape, {.stream = stream, .follows = true}));
          });
          std::printf("  %u/%u %6.2f us %4.0f GB/s", shape.warps, shape.row_tiles, 1e6 * seconds,
                      1e-9 * static_cast<double>(bytes) / seconds);
        }
        std::printf("\n");
      }
    }
  }
  CUDA_MUST(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace terrace
