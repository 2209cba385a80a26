#include "worker/formats/weight_encoding.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "kernels/quant/e4m3_row.h"
#include "kernels/scalar_convert.h"
#include "worker/formats/weight_levels.h"

namespace terrace {
namespace {

// One block: plain levels, and of each element the nearest.
void EncodeBlock(DType dtype, std::span<const float> values, std::byte* out) {
  const CodeFormat format = CodeFormatOf(dtype);
  const size_t count = values.size() / format.shared;
  std::array<WeightLevel, kMostLevels> plain, stored;
  for (size_t i = 0; i < count; ++i)
    plain[i] = PlainLevel(dtype, values.subspan(i * format.shared, format.shared));
  const BlockHead head = HeadOf(dtype, std::span(plain).first(count));
  LevelsOf(dtype, head, std::span(stored).first(count));
  // Where a block is one scale, ggml divides by what it was before it was rounded.
  const bool is_one_scale = format.kind == LevelKind::kSymmetric && count == 1;
  std::array<uint8_t, kMostBlockElements> codes = {};
  for (size_t i = 0; i < values.size(); ++i) {
    const WeightLevel& level = (is_one_scale ? plain : stored)[i / format.shared];
    codes[i] = static_cast<uint8_t>(CodeOf(level, format, values[i]));
  }
  PutBlock(dtype, head, std::span(codes).first(values.size()), out);
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
  const DTypeInfo& info = Info(dtype);
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
    case DType::kQ4_0:
    case DType::kQ5_0:
    case DType::kQ4_K:
    case DType::kQ6_K:
    case DType::kInt4G32:
    case DType::kInt4G128:
      for (size_t block = 0; block < values.size() / info.block_elements; ++block) {
        EncodeBlock(dtype, values.subspan(block * info.block_elements, info.block_elements),
                    out.data() + block * info.block_bytes);
      }
      return;
    case DType::kInt8:
      CHECK(false, "the scales of INT8 lie apart");
  }
}

float EncodeInt8Row(std::span<const float> values, std::span<std::byte> codes) {
  CHECK(codes.size() == values.size(), values.size(), " values into ", codes.size(), " codes");
  const CodeFormat format = CodeFormatOf(DType::kInt8);
  const WeightLevel level = PlainLevel(DType::kInt8, values);
  for (size_t i = 0; i < values.size(); ++i)
    codes[i] = static_cast<std::byte>(CodeOf(level, format, values[i]) - level.zero);
  return level.scale;
}

void RoundToFp8(std::span<const float> values, std::span<std::byte> out) {
  CHECK(out.size() == values.size() * sizeof(uint16_t), values.size(), " values into ", out.size(), " bytes");
  std::vector<float> rounded(values.begin(), values.end());
  for (float& value : rounded) value = FloatFromBF16(BF16FromFloat(value));  // the scale's bits depend on it
  std::vector<uint8_t> codes(values.size());
  const float scale = QuantizeE4M3(rounded, codes.data());
  for (size_t i = 0; i < codes.size(); ++i) rounded[i] = scale * FloatFromE4M3(codes[i]);
  EncodeWeights(DType::kBF16, rounded, out);
}

}  // namespace terrace
