// Activations as the CPU kernels of gemm take them: a token's inputs in groups of 128, each encoded for the
// format of the weights. Encoding is part of the product's definition: it depends on the token's own inputs
// only, and it is the same to the bit on every instruction set with fused multiply-adds; so are the sums, but
// that vdpbf16ps takes subnormal numbers (below 2^-126) for zeros.
//
//   F32 weights     f32, as they are
//   BF16 weights    bf16, to nearest, ties to even
//   quantized       int8 with one scale for the group: scale = max |x| / 127, n = x * (127 / max |x|) to
//                   nearest, ties to even, so n is in [-127, 127]; error at most scale / 2. A group whose
//                   max |x| is below kSmallestGroup is all zeros. One that holds an infinity or a NaN has the
//                   scale NaN and so has every output of its token
//
// The sum of an output, group after group in rising order of K:
//   f32, bf16       even and odd elements (pairs of elements for bf16, the odd one of a pair first) in two
//                   sums of one fused multiply-add each; the two are added, then added to the output's sum
//   quantized       in blocks that share a weight scale: the sum of code * n is exact in int32; the block
//                   adds float(sum) * weight_scale to the group's sum (then, for formats with a minimum or a
//                   zero point, minimum * -float(sum of n)), fused; the group's sum times the group's scale
//                   is added to the output's sum, fused
//
// In memory: [groups][tokens] records, so that tokens lie at a fixed distance from each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace terrace {

inline constexpr size_t kGroup = 128;  // inputs

// Below it 127 / max |x| would be infinite or a scale subnormal.
inline constexpr float kSmallestGroup = 0x1p-110f;

// The wide format holds bf16 in f32, for processors without bf16 dot products.
enum class ActivationFormat : uint8_t { kF32, kBF16, kBF16Wide, kInt8 };
inline constexpr ActivationFormat kEveryActivationFormat[] = {
    ActivationFormat::kF32, ActivationFormat::kBF16, ActivationFormat::kBF16Wide, ActivationFormat::kInt8};

struct alignas(64) F32Group {
  float values[kGroup];
};

struct alignas(64) BF16Group {
  uint16_t values[kGroup];
};

struct alignas(64) Int8Group {
  int8_t values[kGroup];
  int32_t minus_sums16[kGroup / 16];  // -(sum of values) of each 16, 32 and all 128
  int32_t minus_sums32[kGroup / 32];
  int32_t minus_sum;
  float scale;
};

constexpr size_t GroupBytes(ActivationFormat format) {
  switch (format) {
    case ActivationFormat::kF32:
    case ActivationFormat::kBF16Wide:
      return sizeof(F32Group);
    case ActivationFormat::kBF16:
      return sizeof(BF16Group);
    case ActivationFormat::kInt8:
      return sizeof(Int8Group);
  }
  return 0;
}

constexpr size_t GroupsOf(size_t inputs) { return (inputs + kGroup - 1) / kGroup; }

// The encodings of a step's activations that its weights want: [groups, tokens] records of each format, null
// where none does.
struct ActivationGroups {
  std::byte* of[std::size(kEveryActivationFormat)] = {};
  size_t tokens = 0;

  bool Has(ActivationFormat format) const { return of[static_cast<size_t>(format)] != nullptr; }
  template <typename Group>
  Group* At(ActivationFormat format, size_t group, size_t token) const {
    return reinterpret_cast<Group*>(of[static_cast<size_t>(format)]) + group * tokens + token;
  }
};

}  // namespace terrace
