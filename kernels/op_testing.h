// What the tests of the ops share: random inputs and the list of backends.
#pragma once

#include <cstdint>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/op_table.h"

namespace terrace {

// f32 rounds to nearest: each operation is off by at most this factor of its result.
inline constexpr double kRounding = 0x1p-24;

std::vector<float> RandomNormal(size_t count, uint64_t seed);

// Weights of magnitude about 1, at an odd address, as a file may place them.
struct RandomWeights {
  RandomWeights(DType dtype, size_t rows, size_t columns, uint64_t seed);
  std::vector<std::byte> bytes;
  std::vector<float> row_scales;
  WeightMatrix matrix;  // borrows both
};

// A matrix as a backend's gemm takes it.
struct PackedWeights {
  PackedWeights(const OpTable& ops, const WeightMatrix& matrix, ThreadPool& pool,
                ComputeType compute = ComputeType::kAuto);
  std::vector<std::byte> memory;
  GemmWeights weights;  // borrows `memory`, or what `matrix` does
};

// x times one matrix.
std::vector<float> Gemm(const OpTable& ops, const std::vector<float>& x, const WeightMatrix& matrix,
                        ThreadPool& pool, ComputeType compute = ComputeType::kAuto);

// Memory of `rows` rows of keys and of values, every one of them NaN.
struct KvMemory {
  KvMemory(KvDType dtype, size_t rows, size_t head_dim)
      : keys(rows * head_dim * KvElementBytes(dtype), std::byte{0xff}),
        values(keys),
        key_scales(HasScales(dtype) ? rows : 0, std::numeric_limits<float>::quiet_NaN()),
        value_scales(key_scales),
        layer{.dtype = dtype,
              .keys = {.data = keys.data(), .scales = key_scales.data()},
              .values = {.data = values.data(), .scales = value_scales.data()}} {}
  std::vector<std::byte> keys, values;
  std::vector<float> key_scales, value_scales;
  KvLayer layer;  // borrows them
};

inline constexpr DType kEveryDType[] = {DType::kF32,     DType::kF16,      DType::kBF16, DType::kQ8_0,
                                        DType::kQ4_0,    DType::kQ5_0,     DType::kQ4_K, DType::kQ6_K,
                                        DType::kInt4G32, DType::kInt4G128, DType::kInt8};
static_assert(std::size(kEveryDType) == std::size(kDTypes));

// Equal to the bit.
testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b);

// A suite that runs once for each CPU backend this processor has, and for the AVX-512 ones emulated.
class EveryCpu : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
  ThreadPool pool_{2};
};
std::vector<const OpTable*> CpuBackends();
std::string BackendName(const testing::TestParamInfo<const OpTable*>& info);

}  // namespace terrace

#define INSTANTIATE_EVERY_CPU(suite) \
  INSTANTIATE_TEST_SUITE_P(All, suite, testing::ValuesIn(CpuBackends()), BackendName)
