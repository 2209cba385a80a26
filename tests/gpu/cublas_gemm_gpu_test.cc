// Products of cuBLASLt against a reference; and with algorithms that were timed, kept in a folder and taken
// from there.
#include "worker/cuda/cublas_gemm.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/scalar_convert.h"
#include "tests/gpu/gemm_gpu_testing.h"

namespace terrace {
namespace {

std::unique_ptr<CublasLt> OpenCublas(const DeviceTuning& tuning = {}) {
  auto made = CublasLt::Create(tuning);
  CHECK(made.ok(), Message(made.status()));
  return *std::move(made);
}

struct Shape {
  uint32_t tokens, rows, columns;
};
constexpr Shape kOddShapes[] = {
    {1, 16, 64}, {3, 48, 192}, {77, 208, 320}, {130, 1008, 1088}, {300, 2064, 64}};

// To f32: parts of the columns that are added in bf16, as cuBLASLt may where that is the output, are in no
// bound.
TEST(CublasGemm, ProductsOfOddShapesAreWithinTheirBound) {
  const auto cublas = OpenCublas();
  constexpr float kBefore = 2.5f;
  for (const auto& [tokens, rows, columns] : kOddShapes) {
    const std::vector<uint16_t> x = RandomBF16(size_t{tokens} * columns, /*seed=*/1),
                                weights = RandomBF16(size_t{rows} * columns, /*seed=*/2);
    const GpuMatrix matrix{
        .format = GpuFormat::kBF16, .rows = rows, .columns = columns, .codes = weights.data()};
    const DeviceArray<uint16_t> device_x(x), device_weights(weights);
    for (const bool adds : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << tokens << " tokens, [" << rows << ", " << columns << "], adds " << adds);
      const DeviceArray<float> out(std::vector<float>(size_t{tokens} * rows, kBefore));
      const Status status = cublas->Run({.x = device_x.data(),
                                         .tokens = tokens,
                                         .weights = device_weights.data(),
                                         .rows = rows,
                                         .columns = columns,
                                         .out = out.data(),
                                         .out_is_f32 = true,
                                         .add_to_out = adds},
                                        nullptr);
      ASSERT_TRUE(status.ok()) << Message(status);
      const std::vector<float> got = out.Get();
      for (size_t t = 0; t < tokens; t += 7) {
        ExpectGemmRow(matrix, &x[t * columns], adds ? GpuGemmOut::kAddF32 : GpuGemmOut::kF32, &got[t * rows],
                      kBefore, /*stride=*/5);
      }
    }
  }
}

// [rows, columns] of -1, 0 and 1, in each row nothing but zeros beside every `stride`th column, and a power
// of two for each row: what a device takes as bf16, or as E4M3 with scales.
struct WholeNumbers {
  WholeNumbers(uint32_t rows, uint32_t columns, uint32_t stride, uint64_t seed, bool is_e4m3)
      : numbers(size_t{rows} * columns), scales(rows, 1.0f) {
    std::mt19937_64 random(seed);
    std::vector<uint16_t> bf16(numbers.size());
    std::vector<uint8_t> codes(numbers.size());
    for (size_t i = 0; i < numbers.size(); ++i) {
      if ((i / columns + i % columns) % stride == 0) numbers[i] = static_cast<int>(random() % 3) - 1;
      bf16[i] = BF16FromFloat(static_cast<float>(numbers[i]));
      codes[i] = E4M3FromFloat(static_cast<float>(numbers[i]));
    }
    if (is_e4m3) {
      for (float& scale : scales) scale = std::ldexp(1.0f, static_cast<int>(random() % 5) - 2);
      device_codes = DeviceArray<uint8_t>(codes);
    } else {
      device_bf16 = DeviceArray<uint16_t>(bf16);
    }
    device_scales = DeviceArray<float>(scales);
  }
  const void* data() const {
    return device_codes.data() != nullptr ? static_cast<const void*>(device_codes.data())
                                          : device_bf16.data();
  }

  std::vector<int> numbers;
  std::vector<float> scales;
  DeviceArray<uint8_t> device_codes;
  DeviceArray<uint16_t> device_bf16;
  DeviceArray<float> device_scales;
};

// At most 256 products of a sum are not 0. So each sum of some of them is a number that bf16 holds, and the
// tensor cores' FP8 sums, which keep some 14 bits (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024), do
// too: whatever algorithm is taken, all is exact.
TEST(CublasGemm, WholeNumbersAndPowersOfTwoAreExact) {
  const auto cublas = OpenCublas();
  constexpr float kBefore = 2.5f;
  const struct {
    const char* name;
    bool is_f32, adds;
  } outputs[] = {{"bf16", false, false}, {"f32", true, false}, {"added to f32", true, true}};
  size_t without_fp8 = 0;
  for (const bool is_e4m3 : {false, true}) {
    for (const auto& [tokens, rows, columns] : kOddShapes) {
      const WholeNumbers x(tokens, columns, /*stride=*/(columns + 255) / 256, /*seed=*/3, is_e4m3),
          weights(rows, columns, /*stride=*/1, /*seed=*/4, is_e4m3);
      for (const auto& output : outputs) {
        SCOPED_TRACE(testing::Message() << (is_e4m3 ? "fp8, " : "bf16, ") << tokens << " tokens, [" << rows
                                        << ", " << columns << "] to " << output.name);
        DeviceArray<float> f32(output.is_f32 ? size_t{tokens} * rows : 0);
        DeviceArray<uint16_t> bf16(output.is_f32 ? 0 : size_t{tokens} * rows);
        if (output.adds) f32.Set(std::vector<float>(f32.size(), kBefore));  // else NaN
        const Status status =
            cublas->Run({.x = x.data(),
                         .x_scales = is_e4m3 ? x.device_scales.data() : nullptr,
                         .tokens = tokens,
                         .weights = weights.data(),
                         .weight_scales = is_e4m3 ? weights.device_scales.data() : nullptr,
                         .rows = rows,
                         .columns = columns,
                         .out = output.is_f32 ? static_cast<void*>(f32.data()) : bf16.data(),
                         .out_is_f32 = output.is_f32,
                         .add_to_out = output.adds},
                        nullptr);
        if (is_e4m3 && status.code() == StatusCode::kUnimplemented) {  // a model takes bf16 then
          std::printf("no FP8 product of %u x %u x %u to %s\n", tokens, rows, columns, output.name);
          ++without_fp8;
          continue;
        }
        ASSERT_TRUE(status.ok()) << Message(status);
        const std::vector<float> got_f32 = f32.Get();
        const std::vector<uint16_t> got_bf16 = bf16.Get();
        for (size_t t = 0; t < tokens; ++t) {
          for (size_t n = 0; n < rows; ++n) {
            int sum = 0;
            for (size_t k = 0; k < columns; ++k)
              sum += x.numbers[t * columns + k] * weights.numbers[n * columns + k];
            const float want = static_cast<float>(sum) * x.scales[t] * weights.scales[n],
                        got = output.is_f32 ? got_f32[t * rows + n] : FloatFromBF16(got_bf16[t * rows + n]);
            ASSERT_EQ(got, want + (output.adds ? kBefore : 0)) << t << ", " << n;
          }
        }
      }
    }
  }
  if (without_fp8 == std::size(kOddShapes) * std::size(outputs)) GTEST_SKIP() << "FP8 not run: there is none";
}

constexpr uint32_t kTokens = 64, kRows = 128, kColumns = 256;

struct Product {
  std::vector<uint16_t> x = RandomBF16(kTokens * kColumns, 1), weights = RandomBF16(kRows * kColumns, 2);
  DeviceArray<uint16_t> device_x{x}, device_weights{weights};
  DeviceArray<float> out{kTokens * kRows};
  CublasGemm gemm{.x = device_x.data(),
                  .tokens = kTokens,
                  .weights = device_weights.data(),
                  .rows = kRows,
                  .columns = kColumns,
                  .out = out.data(),
                  .out_is_f32 = true};

  // Products of bf16 are exact in f32; a sum of 256 is off by at most 256 2^-24 of the sum of magnitudes.
  void ExpectRight() const {
    const std::vector<float> got = out.Get();
    for (uint32_t t = 0; t < kTokens; ++t) {
      for (uint32_t n = 0; n < kRows; ++n) {
        double sum = 0, size = 0;
        for (uint32_t k = 0; k < kColumns; ++k) {
          const double product =
              double{FloatFromBF16(x[t * kColumns + k])} * FloatFromBF16(weights[n * kColumns + k]);
          sum += product;
          size += std::abs(product);
        }
        ASSERT_NEAR(got[t * kRows + n], sum, size * kColumns * 0x1p-24) << t << ", " << n;
      }
    }
  }
};

TEST(CublasChoices, WhatWasTimedIsTakenByTheNextAndGivesTheSameBits) {
  const std::string folder = testing::TempDir() + "cublas_choices";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  int failures = 0;
  const DeviceTuning tuning{.folder = folder, .on_failed = [&](const Status&) { ++failures; }};
  Product product;
  const auto open = [&] { return OpenCublas(tuning); };
  const auto run = [&](CublasLt& cublas) {
    product.out.Clear();
    const Status status = cublas.Run(product.gemm, nullptr);
    CHECK(status.ok(), Message(status));
    product.ExpectRight();
    return product.out.Get();
  };
  const auto first = open();
  ASSERT_TRUE(first->Tune({&product.gemm, 1}, nullptr).ok());
  const std::vector<float> want = run(*first);
  const auto next = open();
  EXPECT_EQ(run(*next), want);
  ASSERT_TRUE(next->Tune({&product.gemm, 1}, nullptr).ok());
  EXPECT_EQ(run(*next), want);
  EXPECT_EQ(failures, 0);

  std::filesystem::path file;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) file = entry.path();
  std::ofstream(file) << "{}";
  const auto without = open();
  EXPECT_EQ(failures, 1);
  run(*without);
  ASSERT_TRUE(without->Tune({&product.gemm, 1}, nullptr).ok());  // writes it anew
  run(*without);
  EXPECT_EQ(failures, 1);
  EXPECT_GT(std::filesystem::file_size(file), 2u);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace terrace
