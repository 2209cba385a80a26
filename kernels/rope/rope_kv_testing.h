// What the tests of rope_kv on the emulator and on a GPU share: a batch, and what becomes of it to the bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "base/parallel_for.h"
#include "gtest/gtest.h"
#include "kernels/rope/rope_frequencies.h"
#include "kernels/rope/rope_kv.h"
#include "kernels/rope/rope_kv_gpu.h"
#include "kernels/scalar_convert.h"

namespace terrace {

struct RopeKvShape {
  KvDType dtype = KvDType::kBF16;
  uint32_t heads = 0, kv_heads = 0, head_dim = 0;
  bool neighbours = false;
  uint32_t tokens = 5;
  bool has_bias = false, has_norms = false;
};

// The rows of a layer, poisoned until they are written.
struct RopeKvPool {
  RopeKvPool(KvDType its_dtype, size_t rows, size_t head_dim)
      : dtype(its_dtype),
        keys(rows * head_dim * KvElementBytes(dtype), std::byte{0xff}),
        values(keys),
        key_scales(HasScales(dtype) ? rows : 0, std::numeric_limits<float>::quiet_NaN()),
        value_scales(key_scales) {}

  KvLayer Layer() {
    return {.dtype = dtype,
            .keys = {.data = keys.data(), .scales = key_scales.data()},
            .values = {.data = values.data(), .scales = value_scales.data()}};
  }
  // Bytes: NaNs too must be those that are written.
  void ExpectSame(const RopeKvPool& want) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() &&
             (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    };
    EXPECT_TRUE(keys == want.keys);
    EXPECT_TRUE(values == want.values);
    EXPECT_TRUE(same(key_scales, want.key_scales));
    EXPECT_TRUE(same(value_scales, want.value_scales));
  }

  KvDType dtype;
  std::vector<std::byte> keys, values;
  std::vector<float> key_scales, value_scales;
};

// Tokens of three sequences, at positions that follow each other; blocks of 16 positions from all over the
// pool.
struct RopeKvCase {
  static constexpr uint32_t kBlockTokens = 16, kSequences = 3;
  static constexpr float kNormEpsilon = 1e-6f;

  RopeKvCase(const RopeKvShape& its_shape, uint64_t seed) : shape(its_shape) {
    table_pitch = shape.tokens / kSequences / kBlockTokens + 2;
    contexts = table_pitch * kBlockTokens;
    blocks = kSequences * table_pitch;
    for (uint32_t i = 0; i < shape.tokens; ++i) {
      sequences.push_back(i % kSequences);
      positions.push_back(i / kSequences + 13 + i % kSequences);
    }
    block_tables.resize(blocks);
    std::iota(block_tables.begin(), block_tables.end(), 0);
    std::mt19937_64 random(seed);
    std::shuffle(block_tables.begin(), block_tables.end(), random);
    std::vector<uint32_t> every(contexts);
    std::iota(every.begin(), every.end(), 0u);
    cos.resize(size_t{contexts} * shape.head_dim / 2);
    sin.resize(cos.size());
    RopeAngles(every.data(), contexts, MakeRopeFrequencies(10000, shape.head_dim), cos.data(), sin.data());
    std::normal_distribution<float> normal;
    qkv.resize(size_t{shape.tokens} * Heads() * shape.head_dim);
    for (uint16_t& each : qkv) each = BF16FromFloat(normal(random));
    if (shape.has_bias) {
      for (uint32_t i = 0; i < Heads() * shape.head_dim; ++i) bias.push_back(BF16FromFloat(normal(random)));
    }
    if (shape.has_norms) {
      std::uniform_real_distribution<float> weight(0.5f, 1.5f);
      for (uint32_t i = 0; i < shape.head_dim; ++i) q_norm.push_back(weight(random));
      for (uint32_t i = 0; i < shape.head_dim; ++i) k_norm.push_back(weight(random));
    }
  }

  uint32_t Heads() const { return shape.heads + 2 * shape.kv_heads; }
  size_t Rows() const { return size_t{shape.kv_heads} * blocks * kBlockTokens; }
  uint16_t* Head(uint32_t token, uint32_t head) {
    return qkv.data() + (size_t{token} * Heads() + head) * shape.head_dim;
  }

  RopeKvShape shape;
  uint32_t table_pitch = 0, contexts = 0, blocks = 0;
  std::vector<uint32_t> positions, sequences;
  std::vector<int32_t> block_tables;
  std::vector<float> cos, sin, q_norm, k_norm;  // no norms: empty
  std::vector<uint16_t> qkv, bias;              // no bias: empty
};

struct RopeKvResult {
  std::vector<float> q, k;  // before they are rounded to what is stored
  RopeKvPool pool;
};

// What `rope_kv`(args) makes of the batch, in f32, into a pool of `dtype`.
template <typename RopeKv>
RopeKvResult RopeKvOnHost(RopeKvCase& c, KvDType dtype, const RopeKv& rope_kv) {
  const RopeKvShape& s = c.shape;
  const size_t pairs = s.head_dim / 2;
  RopeKvResult out = {.q = {}, .k = {}, .pool = RopeKvPool(dtype, c.Rows(), s.head_dim)};
  std::vector<float> v, cos, sin, bias;
  std::vector<const int32_t*> tables;
  for (const uint16_t each : c.bias) bias.push_back(FloatFromBF16(each));
  const float* const of_queries = bias.empty() ? nullptr : bias.data();
  const float* const of_keys = bias.empty() ? nullptr : of_queries + size_t{s.heads} * s.head_dim;
  const float* const of_values = bias.empty() ? nullptr : of_keys + size_t{s.kv_heads} * s.head_dim;
  for (uint32_t token = 0; token < s.tokens; ++token) {
    tables.push_back(&c.block_tables[c.sequences[token] * c.table_pitch]);
    const float *its_cos = &c.cos[c.positions[token] * pairs], *its_sin = &c.sin[c.positions[token] * pairs];
    cos.insert(cos.end(), its_cos, its_cos + pairs);
    sin.insert(sin.end(), its_sin, its_sin + pairs);
    for (uint32_t head = 0; head < c.Heads(); ++head) {
      std::vector<float>& to = head < s.heads ? out.q : head < s.heads + s.kv_heads ? out.k : v;
      for (uint32_t i = 0; i < s.head_dim; ++i) to.push_back(FloatFromBF16(c.Head(token, head)[i]));
    }
  }
  rope_kv(RopeKvArgs{.batch = {.positions = c.positions.data(),
                               .block_tables = tables.data(),
                               .tokens = s.tokens,
                               .kv_heads = s.kv_heads,
                               .head_dim = s.head_dim,
                               .blocks = c.blocks,
                               .block_tokens = RopeKvCase::kBlockTokens},
                     .q = out.q.data(),
                     .k = out.k.data(),
                     .v = v.data(),
                     .cos = cos.data(),
                     .sin = sin.data(),
                     .heads = s.heads,
                     .neighbours = s.neighbours,
                     .kv = out.pool.Layer(),
                     .q_bias = of_queries,
                     .k_bias = of_keys,
                     .v_bias = of_values,
                     .q_norm = c.q_norm.empty() ? nullptr : c.q_norm.data(),
                     .k_norm = c.k_norm.empty() ? nullptr : c.k_norm.data(),
                     .norm_epsilon = RopeKvCase::kNormEpsilon});
  return out;
}

// A head with the roundings of the kernel: a lane sums the squares of its two pieces, pairs of lanes are
// added at half their number and ever closer.
inline void NormalizeHeadInF32(float* head, size_t head_dim, const float* norm, float epsilon) {
  size_t lanes = 1;
  while (16 * lanes < head_dim) lanes *= 2;
  std::vector<float> squares(lanes);
  for (size_t lane = 0; lane < head_dim / 16; ++lane) {
    for (const float* piece : {head + 8 * lane, head + head_dim / 2 + 8 * lane}) {
      for (size_t i = 0; i < 8; ++i) squares[lane] = std::fma(piece[i], piece[i], squares[lane]);
    }
  }
  for (size_t half = lanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) squares[i] += squares[i + half];
  }
  const float r = squares[0] < std::numeric_limits<float>::infinity()
                      ? 1 / std::sqrt(squares[0] / static_cast<float>(head_dim) + epsilon)
                      : std::numeric_limits<float>::quiet_NaN();
  for (size_t i = 0; i < head_dim; ++i) head[i] = head[i] * r * norm[i];
}

// RopeKvRef with the roundings of the kernel (rope_kv_device.h).
inline void RopeKvInF32(const RopeKvArgs& a) {
  const size_t head_dim = a.batch.head_dim, pairs = head_dim / 2;
  const auto adjust = [&](float* x, size_t heads, const float* bias, const float* norm) {
    for (size_t i = 0; bias != nullptr && i < heads * head_dim; ++i) x[i] += bias[i];
    for (size_t head = 0; norm != nullptr && head < heads; ++head)
      NormalizeHeadInF32(x + head * head_dim, head_dim, norm, a.norm_epsilon);
  };
  const auto rotate = [&](float* x, size_t token, size_t heads) {
    for (float* head = x; head < x + heads * head_dim; head += head_dim) {
      for (size_t pair = 0; pair < pairs; ++pair) {
        float& first = head[a.neighbours ? 2 * pair : pair];
        float& second = head[a.neighbours ? 2 * pair + 1 : pair + pairs];
        const float cos = a.cos[token * pairs + pair], sin = a.sin[token * pairs + pair];
        const float real = std::fma(first, cos, -(second * sin)),
                    imaginary = std::fma(second, cos, first * sin);
        first = real;
        second = imaginary;
      }
    }
  };
  for (size_t token = 0; token < a.batch.tokens; ++token) {
    float* q = a.q + token * a.heads * head_dim;
    float* k = a.k + token * a.batch.kv_heads * head_dim;
    adjust(q, a.heads, a.q_bias, a.q_norm);
    adjust(k, a.batch.kv_heads, a.k_bias, a.k_norm);
    adjust(a.v + token * a.batch.kv_heads * head_dim, a.batch.kv_heads, a.v_bias, nullptr);
    rotate(q, token, a.heads);
    rotate(k, token, a.batch.kv_heads);
  }
  WriteKv({.batch = a.batch, .keys = a.k, .values = a.v, .kv = a.kv});
}

// What the kernel left of c.qkv and wrote to the pool, to the bit: queries rotated, keys and values as they
// were.
inline void ExpectRopeKv(RopeKvCase& c, const std::vector<uint16_t>& qkv, const RopeKvPool& pool) {
  const RopeKvShape& s = c.shape;
  const RopeKvResult want = RopeKvOnHost(c, s.dtype, RopeKvInF32);
  pool.ExpectSame(want.pool);
  std::vector<uint16_t> want_qkv = c.qkv;
  const size_t queries = size_t{s.heads} * s.head_dim;
  for (uint32_t token = 0; token < s.tokens; ++token) {
    uint16_t* const to = want_qkv.data() + size_t{token} * c.Heads() * s.head_dim;
    for (size_t i = 0; i < queries; ++i) to[i] = BF16FromFloat(want.q[token * queries + i]);
  }
  for (size_t i = 0; i < qkv.size(); ++i) {
    const bool is_nan = std::isnan(FloatFromBF16(want_qkv[i]));  // any of them
    ASSERT_TRUE(is_nan ? std::isnan(FloatFromBF16(qkv[i])) : qkv[i] == want_qkv[i]) << "element " << i;
  }
}

// Those bits are RopeKvRef's but for what f32 rounds: two roundings of at most |first| + |second| < 16, and
// its own. Of a norm, whose values with their weights are below 32: its sum of squares passes 16 additions in
// a lane and 4 among them, of which the root leaves half, half a dozen operations follow, and the reference
// rounds once more.
inline void ExpectNearRopeKvRef(RopeKvCase& c) {
  ThreadPool pool(1);
  const RopeKvResult f32 = RopeKvOnHost(c, KvDType::kF32, RopeKvInF32);
  const RopeKvResult ref =
      RopeKvOnHost(c, KvDType::kF32, [&](const RopeKvArgs& args) { RopeKvRef(args, pool); });
  const double error = (c.shape.has_norms ? (3 + 10 + 6 + 1) * 32 : 3 * 16) * 0x1p-24;
  for (size_t i = 0; i < ref.q.size(); ++i) ASSERT_NEAR(f32.q[i], ref.q[i], error);
  for (size_t i = 0; i < ref.k.size(); ++i) ASSERT_NEAR(f32.k[i], ref.k[i], error);
}

}  // namespace terrace
