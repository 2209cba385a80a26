#include "kernels/op_testing.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <cstring>
#include <numbers>

#include "base/rng.h"

namespace terrace {

std::vector<float> RandomNormal(size_t count, uint64_t seed) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) {  // Box and Muller
    const double radius = std::sqrt(-2 * std::log(1 - RandomUniform(seed, i, 0)));
    out[i] = static_cast<float>(radius * std::cos(2 * std::numbers::pi * RandomUniform(seed, i, 1)));
  }
  return out;
}

RandomWeights::RandomWeights(DType dtype, size_t rows, size_t columns, uint64_t seed)
    : matrix{.dtype = dtype, .rows = rows, .columns = columns} {
  bytes.resize(rows * matrix.RowBytes() + 1);
  matrix.data = bytes.data() + 1;
  // A 16-bit pattern of either sign: F16 of [1/4, 4), or the upper half of such an F32.
  const auto f16 = [&](uint64_t i) {
    const uint64_t bits = RandomBits(seed, i, 2);
    return static_cast<uint16_t>((bits & 0x83ff) | (13 + (bits >> 16 & 3)) << 10);
  };
  std::byte* to = bytes.data() + 1;
  const auto put = [&](auto value) {
    std::memcpy(to, &value, sizeof(value));
    to += sizeof(value);
  };
  const std::vector<float> normal = RandomNormal(rows * columns, seed);
  for (size_t i = 0; i < normal.size(); ++i) {
    switch (dtype) {
      case DType::kF32:
        put(normal[i]);
        break;
      case DType::kF16:
        put(f16(i));
        break;
      case DType::kBF16:
        put(static_cast<uint16_t>(std::bit_cast<uint32_t>(normal[i]) >> 16));
        break;
      case DType::kQ8_0:
        if (i % 32 == 0) put(static_cast<uint16_t>(f16(i) - (6 << 10)));  // scales of about 2^-6
        put(static_cast<int8_t>(RandomBits(seed, i, 3)));
        break;
    }
  }
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
  return out;
}

std::string BackendName(const testing::TestParamInfo<const OpTable*>& info) {
  std::string name(info.param->name);
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
}

}  // namespace terrace
