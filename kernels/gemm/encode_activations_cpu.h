// Activations of tokens [begin, end) into groups (gemm/activation_groups.h). Included once per instruction
// set, after simd/vec16_*.h.
#pragma once

#include "kernels/gemm/activation_groups.h"
#include "kernels/gemm/gemm.h"
#include "kernels/norm/rms_norm_cpu.h"

namespace terrace {
namespace {

constexpr size_t kGroupVectors = kGroup / 16;

inline void Encode(const Vec16 (&x)[kGroupVectors], F32Group& out) {
  for (size_t i = 0; i < kGroupVectors; ++i) Store(out.values + 16 * i, x[i]);
}

inline void EncodeBF16Wide(const Vec16 (&x)[kGroupVectors], F32Group& out) {
  for (size_t i = 0; i < kGroupVectors; ++i) {
    alignas(32) uint16_t bits[16];
    StoreBF16(bits, x[i]);
    Store(out.values + 16 * i, LoadBF16(reinterpret_cast<const std::byte*>(bits)));
  }
}

inline void Encode(const Vec16 (&x)[kGroupVectors], BF16Group& out) {
  for (size_t i = 0; i < kGroupVectors; ++i) StoreBF16(out.values + 16 * i, x[i]);
}

inline void Encode(const Vec16 (&x)[kGroupVectors], Int8Group& out) {
  Vec16 most = Zero(), zeros = Zero();
  for (size_t i = 0; i < kGroupVectors; ++i) {
    most = Max(most, Abs(x[i]));
    zeros = Add(zeros, Sub(x[i], x[i]));  // NaN where x is an infinity or a NaN
  }
  const float largest = Largest(most);
  const bool is_finite = Sum(zeros) == 0, is_zero = !is_finite || largest < kSmallestGroup;
  out.scale = is_finite ? (is_zero ? 0 : largest / 127) : __builtin_nanf("");
  const Vec16 inverse = Splat(127 / largest);
  for (size_t i = 0; i < kGroupVectors; ++i) {
    StoreI8(out.values + 16 * i, is_zero ? Zero() : Mul(x[i], inverse));
  }
  alignas(64) int32_t fours[kGroup / 4];
  for (size_t half = 0; half < 2; ++half) {
    StoreSums(fours + 16 * half,
              SumFours(LoadBytes(reinterpret_cast<const std::byte*>(out.values + 64 * half))));
  }
  int32_t all = 0;
  for (size_t i = 0; i < kGroup / 16; ++i) {
    const int32_t sum = fours[4 * i] + fours[4 * i + 1] + fours[4 * i + 2] + fours[4 * i + 3];
    out.minus_sums16[i] = -sum;
    all += sum;
  }
  for (size_t i = 0; i < kGroup / 32; ++i) {
    out.minus_sums32[i] = out.minus_sums16[2 * i] + out.minus_sums16[2 * i + 1];
  }
  out.minus_sum = -all;
}

// Writes every format that `out` has memory for.
inline void EncodeTokens(const GemmArgs& a, size_t begin, size_t end, const ActivationGroups& out) {
  const size_t inputs = a.inputs();
  for (size_t token = begin; token < end; ++token) {
    const float* x = a.Token(token);
    const Vec16 scale = Splat(a.norm != nullptr ? RmsNormScale(x, inputs, a.norm_epsilon) : 1);
    for (size_t group = 0; group < GroupsOf(inputs); ++group) {
      Vec16 values[kGroupVectors];
      for (size_t i = 0; i < kGroupVectors; ++i) {
        const size_t k = group * kGroup + 16 * i, left = k < inputs ? inputs - k : 0;
        const auto load = [&](const float* from) {
          return left >= 16 ? Load(from + k) : left > 0 ? LoadPartial(from + k, left) : Zero();
        };
        values[i] = load(x);
        if (a.norm != nullptr) values[i] = Mul(Mul(values[i], scale), load(a.norm));
      }
      using enum ActivationFormat;
      if (out.Has(kF32)) Encode(values, *out.At<F32Group>(kF32, group, token));
      if (out.Has(kBF16)) Encode(values, *out.At<BF16Group>(kBF16, group, token));
      if (out.Has(kBF16Wide)) EncodeBF16Wide(values, *out.At<F32Group>(kBF16Wide, group, token));
      if (out.Has(kInt8)) Encode(values, *out.At<Int8Group>(kInt8, group, token));
    }
  }
}

}  // namespace
}  // namespace terrace
