#include "worker/formats/weight_levels.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

float Inverse(float scale) { return std::abs(scale) < FLT_MIN ? 0 : 1 / scale; }  // smaller ones are 0 in F16

// value * inverse, rounded and brought into [low, high].
int Rounded(float value, float inverse, int low, int high) {
  return static_cast<int>(std::clamp<long>(std::lround(value * inverse), low, high));
}

// The element of the largest magnitude.
float Peak(std::span<const float> values) {
  return *std::ranges::max_element(values, {}, [](float x) { return std::abs(x); });
}

BlockHead HeadOfQ4_K(std::span<const WeightLevel> levels) {
  float most_scale = 0, most_minimum = 0;
  for (const WeightLevel& level : levels) {
    most_scale = std::max(most_scale, level.scale);
    most_minimum = std::max(most_minimum, level.minimum);
  }
  BlockHead head = {.scale = F16FromFloat(most_scale / 63), .minimum = F16FromFloat(most_minimum / 63)};
  const float scale = Inverse(FloatFromF16(head.scale)), minimum = Inverse(FloatFromF16(head.minimum));
  for (size_t i = 0; i < levels.size(); ++i) {
    head.sub_scales[i] = static_cast<uint8_t>(Rounded(levels[i].scale, scale, 0, 63));
    head.sub_minima[i] = static_cast<uint8_t>(Rounded(levels[i].minimum, minimum, 0, 63));
  }
  return head;
}

BlockHead HeadOfQ6_K(std::span<const WeightLevel> levels) {
  float peak = levels[0].scale;
  for (const WeightLevel& level : levels) {
    if (std::abs(level.scale) > std::abs(peak)) peak = level.scale;
  }
  BlockHead head = {.scale = F16FromFloat(peak / -128)};
  const float inverse = Inverse(FloatFromF16(head.scale));
  for (size_t i = 0; i < levels.size(); ++i) {
    head.sub_scales[i] =
        static_cast<uint8_t>(static_cast<int8_t>(Rounded(levels[i].scale, inverse, -128, 127)));
  }
  return head;
}

void PutF16(uint16_t bits, std::byte* to) { std::memcpy(to, &bits, sizeof(bits)); }

void PutQ4_0(const BlockHead& head, std::span<const uint8_t> codes, std::byte* out) {
  PutF16(head.scale, out);
  for (size_t i = 0; i < 16; ++i) out[2 + i] = static_cast<std::byte>(codes[i] | codes[i + 16] << 4);
}

void PutQ5_0(const BlockHead& head, std::span<const uint8_t> codes, std::byte* out) {
  PutF16(head.scale, out);
  uint32_t upper = 0;
  for (size_t i = 0; i < 16; ++i) {
    const uint32_t low = codes[i], high = codes[i + 16];
    upper |= low >> 4 << i | high >> 4 << (i + 16);
    out[6 + i] = static_cast<std::byte>((low & 0x0f) | (high & 0x0f) << 4);
  }
  std::memcpy(out + 2, &upper, sizeof(upper));
}

void PutQ4_K(const BlockHead& head, std::span<const uint8_t> codes, std::byte* out) {
  PutF16(head.scale, out);
  PutF16(head.minimum, out + 2);
  uint8_t packed[12] = {};
  for (size_t i = 0; i < 8; ++i) {
    const uint8_t scale = head.sub_scales[i], minimum = head.sub_minima[i];
    if (i < 4) {
      packed[i] |= scale;
      packed[i + 4] |= minimum;
    } else {
      packed[i + 4] = static_cast<uint8_t>((scale & 0x0f) | (minimum & 0x0f) << 4);
      packed[i - 4] |= static_cast<uint8_t>(scale >> 4 << 6);
      packed[i] |= static_cast<uint8_t>(minimum >> 4 << 6);
    }
  }
  std::memcpy(out + 4, packed, sizeof(packed));
  for (size_t i = 0; i < 128; ++i) {  // the even runs of 32 in the lower nibbles, the odd in the upper
    const size_t low = i / 32 * 64 + i % 32;
    out[16 + i] = static_cast<std::byte>(codes[low] | codes[low + 32] << 4);
  }
}

void PutQ6_K(const BlockHead& head, std::span<const uint8_t> codes, std::byte* out) {
  std::memset(out, 0, 192);
  std::memcpy(out + 192, head.sub_scales.data(), 16);
  PutF16(head.scale, out + 208);
  for (size_t k = 0; k < 256; ++k) {
    const size_t half = k / 128, quarter = k % 128 / 32, at = k % 32;
    out[64 * half + 32 * (quarter % 2) + at] |=
        static_cast<std::byte>((codes[k] & 0x0f) << (quarter < 2 ? 0 : 4));
    out[128 + 32 * half + at] |= static_cast<std::byte>(codes[k] >> 4 << (2 * quarter));
  }
}

void PutInt4(const BlockHead& head, std::span<const uint8_t> codes, std::byte* out) {
  PutF16(head.scale, out);
  out[2] = static_cast<std::byte>(head.zero_point);
  out[3] = std::byte{0};
  for (size_t i = 0; i < codes.size(); i += 2)
    out[4 + i / 2] = static_cast<std::byte>(codes[i] | codes[i + 1] << 4);
}

}  // namespace

CodeFormat CodeFormatOf(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return {LevelKind::kSymmetric, 32, 1, 255, 128};
    case DType::kQ4_0:
      return {LevelKind::kSymmetric, 32, 0, 15, 8};
    case DType::kQ5_0:
      return {LevelKind::kSymmetric, 32, 0, 31, 16};
    case DType::kQ4_K:
      return {LevelKind::kMinimum, 32, 0, 15, 0};
    case DType::kQ6_K:
      return {LevelKind::kSymmetric, 16, 0, 63, 32};
    case DType::kInt4G32:
      return {LevelKind::kZeroPoint, 32, 0, 15, 0};
    case DType::kInt4G128:
      return {LevelKind::kZeroPoint, 128, 0, 15, 0};
    case DType::kInt8:
      return {LevelKind::kSymmetric, 0, 1, 255, 128};
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;
  }
  CHECK(false, Info(dtype).name, " has no codes");
  return {};
}

WeightLevel PlainLevel(DType dtype, std::span<const float> values) {
  const CodeFormat format = CodeFormatOf(dtype);
  if (format.kind == LevelKind::kSymmetric) {
    const int lowest = format.least - format.zero, highest = format.most - format.zero;
    const float peak = Peak(values);
    const float scale =
        lowest == -highest ? std::abs(peak) / static_cast<float>(highest) : peak / static_cast<float>(lowest);
    return {.scale = scale, .zero = format.zero};
  }
  const auto [least, most] = std::ranges::minmax(values);
  const float low = std::min(least, 0.0f), high = std::max(most, 0.0f);
  return {.scale = (high - low) / static_cast<float>(format.most), .minimum = -low};
}

BlockHead HeadOf(DType dtype, std::span<const WeightLevel> levels) {
  if (dtype == DType::kQ4_K) return HeadOfQ4_K(levels);
  if (dtype == DType::kQ6_K) return HeadOfQ6_K(levels);
  BlockHead head = {.scale = F16FromFloat(levels[0].scale)};
  if (CodeFormatOf(dtype).kind == LevelKind::kZeroPoint) {
    head.zero_point =
        static_cast<uint8_t>(Rounded(levels[0].minimum, Inverse(FloatFromF16(head.scale)), 0, 15));
  }
  return head;
}

void LevelsOf(DType dtype, const BlockHead& head, std::span<WeightLevel> levels) {
  const int zero = CodeFormatOf(dtype).zero;
  const float scale = FloatFromF16(head.scale), minimum = FloatFromF16(head.minimum);
  for (size_t i = 0; i < levels.size(); ++i) {
    switch (dtype) {
      case DType::kQ4_K:
        levels[i] = {.scale = scale * head.sub_scales[i], .minimum = minimum * head.sub_minima[i]};
        break;
      case DType::kQ6_K:
        levels[i] = {.scale = scale * static_cast<int8_t>(head.sub_scales[i]), .zero = zero};
        break;
      case DType::kInt4G32:
      case DType::kInt4G128:
        levels[i] = {.scale = scale, .zero = head.zero_point};
        break;
      default:
        levels[i] = {.scale = scale, .zero = zero};
    }
  }
}

int CodeOf(const WeightLevel& level, const CodeFormat& format, float value) {
  const float steps = (value + level.minimum) * Inverse(level.scale);
  return static_cast<int>(std::clamp<long>(std::lround(steps) + level.zero, format.least, format.most));
}

void PutBlock(DType dtype, const BlockHead& head, std::span<const uint8_t> codes, std::byte* out) {
  CHECK(codes.size() == Info(dtype).block_elements, codes.size(), " codes of ", Info(dtype).name);
  switch (dtype) {
    case DType::kQ8_0:
      PutF16(head.scale, out);
      for (size_t i = 0; i < codes.size(); ++i) out[2 + i] = static_cast<std::byte>(codes[i] ^ 0x80);
      return;
    case DType::kQ4_0:
      return PutQ4_0(head, codes, out);
    case DType::kQ5_0:
      return PutQ5_0(head, codes, out);
    case DType::kQ4_K:
      return PutQ4_K(head, codes, out);
    case DType::kQ6_K:
      return PutQ6_K(head, codes, out);
    case DType::kInt4G32:
    case DType::kInt4G128:
      return PutInt4(head, codes, out);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kInt8:
      CHECK(false, Info(dtype).name, " has no heads");
  }
}

}  // namespace terrace
