// Products of cuBLASLt with algorithms that were timed, kept in a folder and taken from there.
#include "worker/cuda/cublas_gemm.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/scalar_convert.h"
#include "tests/gpu/gpu_testing.h"

namespace terrace {
namespace {

constexpr uint32_t kTokens = 64, kRows = 128, kColumns = 256;

std::vector<uint16_t> RandomBF16(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> out(count);
  for (uint16_t& each : out) each = BF16FromFloat(normal(random));
  return out;
}

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
  const auto open = [&] {
    auto made = CublasLt::Create(tuning);
    CHECK(made.ok(), Message(made.status()));
    return *std::move(made);
  };
  const auto run = [&](CublasLt& cublas) {
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
