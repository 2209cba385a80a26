#include <cstdlib>
#include <cstring>

#include "kernels/gemm/tile_gemm_cuda.h"
#include "kernels/gemm/tile_gemm_testing.h"
#include "tests/gpu/gpu_testing.h"

namespace terrace {
namespace {

// A packed matrix on the device too.
struct DeviceMatrix {
  explicit DeviceMatrix(const PackedGpuMatrix& from)
      : codes(from.codes), scales(from.scales), matrix(from.matrix) {
    matrix.codes = codes.data();
    matrix.scales = scales.data();
  }
  DeviceArray<std::byte> codes, scales;
  GpuMatrix matrix;
};

struct Scratch {
  Scratch(uint32_t rows, uint32_t columns, uint32_t tokens)
      : partials(TileGemmPartialFloats(rows, columns, tokens)), arrived(TileGemmCounters(rows, tokens)) {
    arrived.Set(std::vector<uint32_t>(arrived.size()));
  }
  TileGemmScratch Get() const { return {partials.data(), arrived.data()}; }
  DeviceArray<float> partials;
  DeviceArray<uint32_t> arrived;
};

size_t RowBytes(uint32_t rows, GpuGemmOut kind) {
  return size_t{kind == GpuGemmOut::kGated ? rows / 2 : rows} *
         (kind == GpuGemmOut::kF32 || kind == GpuGemmOut::kAddF32 ? 4 : 2);
}

// out's bytes, of `tokens` rows; kAddF32 adds to 2.5.
std::vector<std::byte> TileGemm(const GpuMatrix& weights, const std::vector<uint16_t>& x, GpuGemmOut kind,
                                bool follows = false) {
  const auto tokens = static_cast<uint32_t>(x.size() / weights.columns);
  const DeviceArray<uint16_t> device_x(x);
  const Scratch scratch(weights.rows, weights.columns, tokens);
  DeviceArray<std::byte> out(tokens * RowBytes(weights.rows, kind) + 64);
  if (kind == GpuGemmOut::kAddF32) {
    const std::vector<float> before(size_t{tokens} * weights.rows, 2.5f);
    std::vector<std::byte> bytes(before.size() * 4);
    std::memcpy(bytes.data(), before.data(), bytes.size());
    out.Set(bytes);
  }
  CUDA_MUST(TileGemmCuda(
      {.x = device_x.data(), .tokens = tokens, .weights = weights, .out = out.data(), .kind = kind},
      scratch.Get(), {.follows = follows}));
  std::vector<std::byte> bytes = out.Get();
  for (size_t i = bytes.size() - 64; i < bytes.size(); ++i) EXPECT_EQ(bytes[i], std::byte{0xff});
  bytes.resize(bytes.size() - 64);
  for (const uint32_t count : scratch.arrived.Get()) EXPECT_EQ(count, 0u);
  return bytes;
}

TEST(TileGemmGpu, EveryFormatAndKindIsItsRoundedValuesTimesX) {
  const struct { uint32_t rows, columns; } shapes[] = {{272, 2048}, {1024, 1088}};
  for (const auto& [rows, columns] : shapes) {
    for (const DType dtype : kTileGemmDTypes) {
      for (const GpuGemmOut kind :
           {GpuGemmOut::kBF16, GpuGemmOut::kF32, GpuGemmOut::kAddF32, GpuGemmOut::kGated}) {
        // Superblocks of Q4_K and Q6_K have 256 columns.
        const bool is_super = dtype == DType::kQ4_K || dtype == DType::kQ6_K || dtype == DType::kInt4G128;
        const uint32_t whole = is_super ? columns / 256 * 256 : columns;
        const TestGpuMatrix weights(dtype, rows, whole, /*seed=*/1, kind == GpuGemmOut::kGated);
        const DeviceMatrix device(*weights.packed);
        const RoundedGpuMatrix rounded(weights.matrix());
        for (const uint32_t tokens : {1u, 17u, 32u, 61u, 64u, 100u}) {
          SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << rows << ", " << whole << "] kind "
                                          << static_cast<int>(kind) << " " << tokens << " tokens");
          const std::vector<uint16_t> x = RandomBF16(size_t{tokens} * whole, /*seed=*/tokens);
          const std::vector<std::byte> out = TileGemm(device.matrix, x, kind, /*follows=*/tokens == 17);
          for (uint32_t token = 0; token < tokens; token += 9) {
            ExpectGemmRow(rounded.matrix, &x[size_t{token} * whole], kind, &out[token * RowBytes(rows, kind)],
                          2.5f, /*stride=*/37);
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

// Prints the time of the matrices of a layer of an 8B model; nothing is expected of it. Several copies of a
// matrix take turns, so that none is found in L2. With TERRACE_GPU_SPEED only: it is no test.
TEST(TileGemmGpu, Speed) {
  if (std::getenv("TERRACE_GPU_SPEED") == nullptr) GTEST_SKIP();
  constexpr size_t kCold = size_t{256} << 20;
  const struct {
    const char* name;
    GpuFormat format;
    uint32_t group;
  } formats[] = {{"e4m3", GpuFormat::kE4M3, 0},
                 {"w4g32", GpuFormat::kW4, 32},
                 {"w4g128", GpuFormat::kW4, 128},
                 {"w8g32", GpuFormat::kW8, 32}};
  const struct {
    uint32_t rows, columns;
  } shapes[] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
  cudaStream_t stream;
  CUDA_MUST(cudaStreamCreate(&stream));
  for (const auto& format : formats) {
    for (const uint32_t tokens : {16u, 32u, 64u, 128u}) {
      double layer = 0;
      std::printf("%-6s %3u tokens:", format.name, tokens);
      for (const auto& [rows, columns] : shapes) {
        GpuMatrix matrix{.format = format.format, .rows = rows, .columns = columns, .group = format.group};
        const size_t bytes = GpuCodeBytes(matrix) + GpuScaleBytes(matrix);
        const size_t copies = (kCold + bytes - 1) / bytes;
        DeviceArray<std::byte> memory(copies * bytes);
        CUDA_MUST(cudaMemset(memory.data(), 0, copies * bytes));
        DeviceArray<uint16_t> x(size_t{tokens} * columns), out(size_t{tokens} * rows);
        const Scratch scratch(rows, columns, tokens);
        size_t turn = 0;
        const double seconds = SecondsOf(stream, 3, static_cast<int>(2 * copies), [&] {
          const std::byte* at = memory.data() + turn++ % copies * bytes;
          matrix.codes = at;
          matrix.scales = at + GpuCodeBytes(matrix);
          CUDA_MUST(TileGemmCuda({.x = x.data(), .tokens = tokens, .weights = matrix, .out = out.data()},
                                 scratch.Get(), {.stream = stream, .follows = true}));
        });
        layer += seconds;
        std::printf("  [%5u, %5u] %6.2f us %4.0f GB/s", rows, columns, 1e6 * seconds,
                    1e-9 * static_cast<double>(bytes) / seconds);
      }
      std::printf("  layer %6.2f us\n", 1e6 * layer);
    }
  }
  CUDA_MUST(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace terrace
