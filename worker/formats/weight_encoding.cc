#include "worker/formats/weight_encoding.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/status.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

constexpr size_t kBlock = Info(DType::kQ8_0).block_elements;

void EncodeBlock(const float* values, std::byte* out) {
  float largest = 0;
  for (size_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::abs(values[i]));
  const float scale = largest / 127;
  const float inverse = scale < FLT_MIN ? 0 : 1 / scale;  // smaller ones are 0 in F16 anyway
  const uint16_t stored = F16FromFloat(scale);
  std::memcpy(out, &stored, sizeof(stored));
  for (size_t i = 0; i < kBlock; ++i)
    out[sizeof(stored) + i] = static_cast<std::byte>(static_cast<int8_t>(std::round(values[i] * inverse)));
}

template <typename Convert>
void EncodeEach(std::span<const float> values, std::byte* out, Convert convert) {
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = convert(values[i]);
    std::memcpy(out + i * sizeof(bits), &bits, sizeof(bits));
  }
}

}  // namespace

void EncodeWeights(DType dtype, std::span<const float> values, std::span<std::byte> out) {
  const DTypeInfo info = Info(dtype);
  CHECK(values.size() % info.block_elements == 0 &&
            out.size() == values.size() / info.block_elements * info.block_bytes,
        values.size(), " values of ", info.name, " into ", out.size(), " bytes");
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out.data(), values.data(), out.size());
      return;
    case DType::kF16:
      return EncodeEach(values, out.data(), F16FromFloat);
    case DType::kBF16:
      return EncodeEach(values, out.data(), BF16FromFloat);
    case DType::kQ8_0:
      for (size_t block = 0; block < values.size() / kBlock; ++block)
        EncodeBlock(&values[block * kBlock], &out[block * info.block_bytes]);
      return;
  }
}

}  // namespace terrace
