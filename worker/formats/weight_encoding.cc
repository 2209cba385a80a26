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

// A 16-bit scale at `to`, and its value there.
float PutF16(float scale, std::byte* to) {
  const uint16_t bits = F16FromFloat(scale);
  std::memcpy(to, &bits, sizeof(bits));
  return FloatFromF16(bits);
}

float Inverse(float scale) { return std::abs(scale) < FLT_MIN ? 0 : 1 / scale; }  // smaller ones are 0 in F16

// value / scale, rounded and brought into [low, high].
int Level(float value, float inverse, int low, int high) {
  return std::clamp(static_cast<int>(std::lround(value * inverse)), low, high);
}

// The element of the largest magnitude: of the biased formats the scale maps it to the lowest code.
float Peak(std::span<const float> values) {
  return *std::ranges::max_element(values, {}, [](float x) { return std::abs(x); });
}

void EncodeQ8_0(std::span<const float> values, std::byte* out) {
  const float scale = std::abs(Peak(values)) / 127, inverse = Inverse(scale);
  PutF16(scale, out);
  for (size_t i = 0; i < values.size(); ++i) {
    out[2 + i] = static_cast<std::byte>(static_cast<int8_t>(std::round(values[i] * inverse)));
  }
}

void EncodeQ4_0(std::span<const float> values, std::byte* out) {
  const float scale = Peak(values) / -8, inverse = Inverse(scale);
  PutF16(scale, out);
  for (size_t i = 0; i < 16; ++i) {
    const int low = Level(values[i], inverse, -8, 7) + 8, high = Level(values[i + 16], inverse, -8, 7) + 8;
    out[2 + i] = static_cast<std::byte>(low | high << 4);
  }
}

void EncodeQ5_0(std::span<const float> values, std::byte* out) {
  const float scale = Peak(values) / -16, inverse = Inverse(scale);
  PutF16(scale, out);
  uint32_t upper = 0;
  for (size_t i = 0; i < 16; ++i) {
    const int low = Level(values[i], inverse, -16, 15) + 16,
              high = Level(values[i + 16], inverse, -16, 15) + 16;
    upper |= static_cast<uint32_t>(low >> 4) << i | static_cast<uint32_t>(high >> 4) << (i + 16);
    out[6 + i] = static_cast<std::byte>((low & 0x0f) | (high & 0x0f) << 4);
  }
  std::memcpy(out + 2, &upper, sizeof(upper));
}

// The least and the largest of the values and 0: what codes from 0 up must span.
std::pair<float, float> Range(std::span<const float> values) {
  const auto [least, most] = std::ranges::minmax(values);
  return {std::min(least, 0.0f), std::max(most, 0.0f)};
}

void EncodeQ4_K(std::span<const float> values, std::byte* out) {
  float steps[8], minima[8];  // of each 32
  for (size_t i = 0; i < 8; ++i) {
    const auto [least, most] = Range(values.subspan(32 * i, 32));
    steps[i] = (most - least) / 15;
    minima[i] = -least;
  }
  const float scale = PutF16(*std::ranges::max_element(steps) / 63, out);
  const float minimum = PutF16(*std::ranges::max_element(minima) / 63, out + 2);
  uint8_t* packed = reinterpret_cast<uint8_t*>(out) + 4;  // kernels/quant/weight_codes.h says how
  std::memset(packed, 0, 12);
  for (size_t i = 0; i < 8; ++i) {
    const int s = Level(steps[i], Inverse(scale), 0, 63), m = Level(minima[i], Inverse(minimum), 0, 63);
    if (i < 4) {
      packed[i] |= static_cast<uint8_t>(s);
      packed[i + 4] |= static_cast<uint8_t>(m);
    } else {
      packed[i + 4] = static_cast<uint8_t>((s & 0x0f) | (m & 0x0f) << 4);
      packed[i - 4] |= static_cast<uint8_t>(s >> 4 << 6);
      packed[i] |= static_cast<uint8_t>(m >> 4 << 6);
    }
    const float step = scale * static_cast<float>(s), least = minimum * static_cast<float>(m);
    for (size_t k = 0; k < 32; ++k) {
      const int code = Level(values[32 * i + k] + least, Inverse(step), 0, 15);
      std::byte& to = out[16 + 32 * (i / 2) + k];
      to = i % 2 == 0 ? static_cast<std::byte>(code) : to | static_cast<std::byte>(code << 4);
    }
  }
}

void EncodeQ6_K(std::span<const float> values, std::byte* out) {
  float scales[16];  // of each 16
  for (size_t i = 0; i < 16; ++i) scales[i] = Peak(values.subspan(16 * i, 16)) / -32;
  const float scale = PutF16(Peak(scales) / -128, out + 208);
  std::memset(out, 0, 192);
  for (size_t i = 0; i < 16; ++i) {
    const int sub_scale = Level(scales[i], Inverse(scale), -128, 127);
    out[192 + i] = static_cast<std::byte>(static_cast<int8_t>(sub_scale));
    const float inverse = Inverse(scale * static_cast<float>(sub_scale));
    for (size_t k = 16 * i; k < 16 * i + 16; ++k) {
      const int code = Level(values[k], inverse, -32, 31) + 32;
      const size_t half = k / 128, quarter = k % 128 / 32, at = k % 32;
      out[64 * half + 32 * (quarter % 2) + at] |=
          static_cast<std::byte>((code & 0x0f) << (quarter < 2 ? 0 : 4));
      out[128 + 32 * half + at] |= static_cast<std::byte>(code >> 4 << (2 * quarter));
    }
  }
}

void EncodeInt4(std::span<const float> values, std::byte* out) {
  const auto [least, most] = Range(values);
  const float scale = PutF16((most - least) / 15, out), inverse = Inverse(scale);
  const int zero_point = Level(-least, inverse, 0, 15);
  out[2] = static_cast<std::byte>(zero_point);
  out[3] = std::byte{0};
  for (size_t i = 0; i < values.size(); i += 2) {
    const int low = Level(values[i], inverse, -zero_point, 15 - zero_point) + zero_point;
    const int high = Level(values[i + 1], inverse, -zero_point, 15 - zero_point) + zero_point;
    out[4 + i / 2] = static_cast<std::byte>(low | high << 4);
  }
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
  const auto encode_blocks = [&](auto encode) {
    for (size_t block = 0; block < values.size() / info.block_elements; ++block) {
      encode(values.subspan(block * info.block_elements, info.block_elements),
             out.data() + block * info.block_bytes);
    }
  };
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out.data(), values.data(), out.size());
      return;
    case DType::kF16:
      return EncodeEach(values, out.data(), F16FromFloat);
    case DType::kBF16:
      return EncodeEach(values, out.data(), BF16FromFloat);
    case DType::kQ8_0:
      return encode_blocks(EncodeQ8_0);
    case DType::kQ4_0:
      return encode_blocks(EncodeQ4_0);
    case DType::kQ5_0:
      return encode_blocks(EncodeQ5_0);
    case DType::kQ4_K:
      return encode_blocks(EncodeQ4_K);
    case DType::kQ6_K:
      return encode_blocks(EncodeQ6_K);
    case DType::kInt4G32:
    case DType::kInt4G128:
      return encode_blocks(EncodeInt4);
    case DType::kInt8:
      CHECK(false, "the scales of INT8 lie apart");
  }
}

}  // namespace terrace
