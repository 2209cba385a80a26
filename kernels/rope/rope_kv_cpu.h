// Tokens [begin, end). Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/norm/rms_norm_cpu.h"
#include "kernels/rope/rope_kv.h"

namespace terrace {
namespace {

// x: [heads, head_dim], of one token.
inline void AddBias(const RopeKvArgs& a, const float* bias, float* x, size_t heads) {
  if (bias == nullptr) return;
  const size_t count = heads * a.batch.head_dim;
  for (size_t i = 0; i < count; ++i) x[i] += bias[i];
}

inline void NormalizeHeads(const RopeKvArgs& a, const float* norm, float* x, size_t heads) {
  if (norm == nullptr) return;
  const size_t head_dim = a.batch.head_dim;
  for (size_t head = 0; head < heads; ++head, x += head_dim) {
    const float scale = RmsNormScale(x, head_dim, a.norm_epsilon);
    for (size_t i = 0; i < head_dim; ++i) x[i] = x[i] * scale * norm[i];
  }
}

// Pair p is x[kStep * p] and partner[kStep * p].
template <size_t kStep>
inline void RotateHead(float* x, float* partner, const float* cos, const float* sin, size_t pairs) {
  for (size_t p = 0; p < pairs; ++p) {
    const float first = x[kStep * p], second = partner[kStep * p];
    x[kStep * p] = first * cos[p] - second * sin[p];
    partner[kStep * p] = second * cos[p] + first * sin[p];
  }
}

inline void RotateHeads(const RopeKvArgs& a, float* x, size_t token, size_t heads) {
  const size_t head_dim = a.batch.head_dim, pairs = head_dim / 2;
  const float *cos = a.cos + token * pairs, *sin = a.sin + token * pairs;
  for (size_t head = 0; head < heads; ++head, x += head_dim) {
    if (a.neighbours) {
      RotateHead<2>(x, x + 1, cos, sin, pairs);
    } else {
      RotateHead<1>(x, x + pairs, cos, sin, pairs);
    }
  }
}

// A row as 16-bit floats, whose exponent has the bits `exponent`; what is not finite becomes `nan`.
template <typename Store16>
inline void PutRow16(const float* from, size_t count, std::byte* to, uint16_t exponent, uint16_t nan,
                     Store16 store) {
  for (size_t d = 0; d < count; d += 16) {
    const size_t left = count - d < 16 ? count - d : 16;
    alignas(32) uint16_t bits[16];
    store(bits, left == 16 ? Load(from + d) : LoadPartial(from + d, left));
    for (uint16_t& each : bits) each = (each & exponent) == exponent ? nan : each;
    __builtin_memcpy(to + 2 * d, bits, 2 * left);
  }
}

inline void PutRowInt8(const float* from, size_t count, std::byte* to, float& scale) {
  Vec16 most = Zero(), zeros = Zero();
  const auto load = [&](size_t d) {
    return count - d >= 16 ? Load(from + d) : LoadPartial(from + d, count - d);
  };
  for (size_t d = 0; d < count; d += 16) {
    most = Max(most, Abs(load(d)));
    zeros = Add(zeros, Sub(load(d), load(d)));  // NaN where one is an infinity or a NaN
  }
  const float largest = Largest(most);
  const bool is_finite = Sum(zeros) == 0;
  scale = !is_finite ? __builtin_nanf("") : largest < kSmallestInt8Row ? 0 : largest / 127;
  for (size_t d = 0; d < count; d += 16) {
    alignas(16) int8_t bytes[16] = {};
    if (scale > 0) StoreI8(bytes, Div(load(d), Splat(scale)));
    __builtin_memcpy(to + d, bytes, count - d < 16 ? count - d : 16);
  }
}

inline void PutRowFp8(const float* from, size_t count, std::byte* to) {
  for (size_t d = 0; d < count; ++d) to[d] = std::byte{E4M3FromFloat(from[d])};
}

// To the bit what WriteKv writes.
inline void PutRow(const RopeKvArgs& a, const float* from, size_t row, const KvRows& rows) {
  const size_t count = a.batch.head_dim;
  std::byte* to = rows.data + row * count * KvElementBytes(a.kv.dtype);
  switch (a.kv.dtype) {
    case KvDType::kF32:
      __builtin_memcpy(to, from, count * sizeof(float));
      return;
    case KvDType::kF16:
      return PutRow16(from, count, to, 0x7c00, 0x7e00, [](uint16_t* out, Vec16 x) { StoreF16(out, x); });
    case KvDType::kBF16:
      return PutRow16(from, count, to, 0x7f80, 0x7fc0, [](uint16_t* out, Vec16 x) { StoreBF16(out, x); });
    case KvDType::kInt8:
      return PutRowInt8(from, count, to, rows.scales[row]);
    case KvDType::kFp8:
      return PutRowFp8(from, count, to);
  }
}

inline void RopeKvTokens(const RopeKvArgs& a, size_t begin, size_t end) {
  const size_t head_dim = a.batch.head_dim, kv_heads = a.batch.kv_heads;
  for (size_t token = begin; token < end; ++token) {
    float* q = a.q + token * a.heads * head_dim;
    float* k = a.k + token * kv_heads * head_dim;
    float* v = a.v + token * kv_heads * head_dim;
    AddBias(a, a.q_bias, q, a.heads);
    AddBias(a, a.k_bias, k, kv_heads);
    AddBias(a, a.v_bias, v, kv_heads);
    NormalizeHeads(a, a.q_norm, q, a.heads);
    NormalizeHeads(a, a.k_norm, k, kv_heads);
    RotateHeads(a, q, token, a.heads);
    RotateHeads(a, k, token, kv_heads);
    for (size_t head = 0; head < kv_heads; ++head) {
      const size_t row = a.batch.Row(token, head, a.batch.positions[token]);
      PutRow(a, k + head * head_dim, row, a.kv.keys);
      PutRow(a, v + head * head_dim, row, a.kv.values);
    }
  }
}

}  // namespace
}  // namespace terrace
