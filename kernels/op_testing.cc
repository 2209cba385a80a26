#include "kernels/op_testing.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <cstring>
#include <memory>
#include <numbers>

#include "base/rng.h"
#include "kernels/emulated/emulated_ops.h"
#include "kernels/scalar_convert.h"

namespace terrace {

std::vector<float> RandomNormal(size_t count, uint64_t seed) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) {  // Box and Muller
    const double radius = std::sqrt(-2 * std::log(1 - RandomUniform(seed, i, 0)));
    out[i] = static_cast<float>(radius * std::cos(2 * std::numbers::pi * RandomUniform(seed, i, 1)));
  }
  return out;
}

namespace {

// A 16-bit pattern of either sign: F16 of [2^low, 2^(low + 4)).
uint16_t RandomF16(int low, uint64_t bits) {
  const auto exponent = static_cast<uint64_t>(15 + low) + (bits >> 16 & 3);
  return static_cast<uint16_t>((bits & 0x83ff) | exponent << 10);
}

}  // namespace

RandomWeights::RandomWeights(DType dtype, size_t rows, size_t columns, uint64_t seed)
    : row_scales(dtype == DType::kInt8 ? rows : 0),
      matrix{.dtype = dtype, .rows = rows, .columns = columns, .row_scales = row_scales.data()} {
  bytes.resize(rows * matrix.RowBytes() + 1);
  matrix.data = bytes.data() + 1;
  uint64_t counter = 0;
  const auto random = [&] { return RandomBits(seed, counter++, 2); };
  std::byte* to = bytes.data() + 1;
  const auto put = [&](auto value) {
    std::memcpy(to, &value, sizeof(value));
    to += sizeof(value);
  };
  const auto put_bytes = [&](size_t count) {
    for (size_t i = 0; i < count; ++i) put(static_cast<uint8_t>(random()));
  };
  const auto put_f16 = [&](int low) { put(RandomF16(low, random())); };
  for (float& scale : row_scales) scale = FloatFromF16(RandomF16(-8, random()));
  const std::vector<float> normal = RandomNormal(rows * columns, seed);
  for (size_t i = 0; i < normal.size(); i += Info(dtype).block_elements) {
    switch (dtype) {
      case DType::kF32:
        put(normal[i]);
        break;
      case DType::kF16:
        put_f16(-2);
        break;
      case DType::kBF16:
        put(static_cast<uint16_t>(std::bit_cast<uint32_t>(normal[i]) >> 16));
        break;
      case DType::kQ8_0:
        put_f16(-8);
        put_bytes(32);
        break;
      case DType::kQ4_0:
        put_f16(-4);
        put_bytes(16);
        break;
      case DType::kQ5_0:
        put_f16(-5);
        put_bytes(20);
        break;
      case DType::kQ4_K:
        put_f16(-10);
        put_f16(-8);
        put_bytes(140);
        break;
      case DType::kQ6_K:
        put_bytes(208);
        put_f16(-12);
        break;
      case DType::kInt4G32:
      case DType::kInt4G128:
        put_f16(-4);
        put(static_cast<uint8_t>(random() % 16));
        put(uint8_t{0});
        put_bytes(Info(dtype).block_elements / 2);
        break;
      case DType::kInt8:
        put_bytes(1);
        break;
    }
  }
}

PackedWeights::PackedWeights(const OpTable& ops, const WeightMatrix& matrix, ThreadPool& pool,
                             ComputeType compute) {
  const GemmWeights layout = ops.layout(matrix, compute, pool);
  memory.resize(layout.bytes + 64);
  void* place = memory.data();
  size_t space = memory.size();
  CHECK(std::align(64, space - 64, place, space) != nullptr);
  weights = ops.pack(matrix, layout, static_cast<std::byte*>(place), pool);
}

std::vector<float> Gemm(const OpTable& ops, const std::vector<float>& x, const WeightMatrix& matrix,
                        ThreadPool& pool, ComputeType compute) {
  const PackedWeights weights(ops, matrix, pool, compute);
  const size_t tokens = x.size() / matrix.columns;
  std::vector<float> out(tokens * matrix.rows, -7);
  const GemmPart part{.weights = weights.weights, .out = out.data()};
  ops.gemm({.x = x.data(), .tokens = tokens, .parts = {&part, 1}}, pool);
  return out;
}

testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " against " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return testing::AssertionFailure() << "element " << i << ": " << a[i] << " against " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

std::vector<const OpTable*> CpuBackends() {
  std::vector<const OpTable*> out;
  for (const OpTable& table : AllCpuOps()) out.push_back(&table);
  for (const OpTable& table : EmulatedOps()) out.push_back(&table);
  return out;
}

std::string BackendName(const testing::TestParamInfo<const OpTable*>& info) {
  std::string name(info.param->name);
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
}

}  // namespace terrace
