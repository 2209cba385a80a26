#include "kernels/rope/rope_kv.h"

#include <cmath>
#include <limits>

#include "kernels/op_testing.h"
#include "kernels/rope/rope_frequencies.h"

namespace terrace {
namespace {

struct Angles {
  Angles(const std::vector<uint32_t>& positions, size_t head_dim)
      : cos(positions.size() * head_dim / 2), sin(cos.size()) {
    RopeAngles(positions.data(), positions.size(), MakeRopeFrequencies(10000, head_dim), cos.data(),
               sin.data());
  }
  std::vector<float> cos, sin;
};

// A batch of tokens of sequences of their own, a KV block each.
struct Places {
  explicit Places(size_t tokens) : blocks(tokens), tables(tokens) {
    for (size_t i = 0; i < tokens; ++i) {
      blocks[i] = static_cast<int32_t>(tokens - 1 - i);
      tables[i] = &blocks[i];
    }
  }
  // Blocks of `block_tokens`, more than every position.
  PagedTokens Batch(const std::vector<uint32_t>& positions, size_t kv_heads, size_t head_dim,
                    size_t block_tokens) const {
    return {.positions = positions.data(),
            .block_tables = tables.data(),
            .tokens = positions.size(),
            .kv_heads = kv_heads,
            .head_dim = head_dim,
            .blocks = positions.size(),
            .block_tokens = block_tokens};
  }
  std::vector<int32_t> blocks;
  std::vector<const int32_t*> tables;
};

// Rotates x, [tokens, heads, head_dim], as queries and as keys, which must be the same.
std::vector<float> Rope(const OpTable& ops, const std::vector<float>& x,
                        const std::vector<uint32_t>& positions, size_t head_dim, bool neighbours) {
  ThreadPool pool(2);
  const Angles angles(positions, head_dim);
  const size_t heads = x.size() / positions.size() / head_dim;
  const std::vector<uint32_t> first(positions.size());  // where keys go: 0 of their block
  const Places places(positions.size());
  const KvMemory kv(KvDType::kF32, positions.size() * heads, head_dim);
  std::vector<float> q = x, k = x, v = x;
  ops.rope_kv({.batch = places.Batch(first, heads, head_dim, 1),
               .q = q.data(),
               .k = k.data(),
               .v = v.data(),
               .cos = angles.cos.data(),
               .sin = angles.sin.data(),
               .heads = heads,
               .neighbours = neighbours,
               .kv = kv.layer},
              pool);
  EXPECT_TRUE(SameBits(q, k));
  EXPECT_TRUE(SameBits(v, x));
  return q;
}

// Two products and a difference: three roundings of at most |first| + |second|, and the reference's own.
TEST_P(EveryCpu, RopeMatchesTheReference) {
  const std::vector<uint32_t> positions = {0, 1, 17, 511, 100'000};
  for (const size_t head_dim : {2, 6, 32, 128}) {
    for (const bool neighbours : {false, true}) {
      const auto x = RandomNormal(positions.size() * 3 * head_dim, /*seed=*/head_dim);
      const auto want = Rope(ReferenceOps(), x, positions, head_dim, neighbours);
      const auto got = Rope(ops(), x, positions, head_dim, neighbours);
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t head = i / head_dim * head_dim, element = i % head_dim, pairs = head_dim / 2;
        const size_t partner = neighbours ? element ^ 1 : (element + pairs) % head_dim;
        EXPECT_NEAR(got[i], want[i], 4 * kRounding * (std::abs(x[i]) + std::abs(x[head + partner]))) << i;
      }
    }
  }
}

TEST_P(EveryCpu, RopeLeavesPositionZeroAsItIs) {
  const auto x = RandomNormal(64, /*seed=*/1);
  EXPECT_TRUE(SameBits(Rope(ops(), x, {0}, 32, false), x));
}

// What RoPE is for: scores depend on the distance of two positions alone.
TEST_P(EveryCpu, RopedScoresDependOnTheDistanceOnly) {
  const auto q = RandomNormal(32, /*seed=*/2), k = RandomNormal(32, /*seed=*/3);
  for (const bool neighbours : {false, true}) {
    const auto score = [&](uint32_t query_position, uint32_t key_position) {
      const auto a = Rope(ops(), q, {query_position}, 32, neighbours);
      const auto b = Rope(ops(), k, {key_position}, 32, neighbours);
      double sum = 0;
      for (size_t i = 0; i < 32; ++i) sum += double{a[i]} * b[i];
      return sum;
    };
    EXPECT_NEAR(score(9, 4), score(405, 400), 1e-5);
    EXPECT_GT(std::abs(score(9, 4) - score(9, 5)), 1e-3);
  }
}

// A GGUF file stores row p of a head's first half next to row p of its second half.
TEST_P(EveryCpu, NeighboursAreHalvesOfPermutedRows) {
  const size_t head_dim = 32, pairs = 16;
  const auto interleave = [&](const std::vector<float>& x) {
    std::vector<float> out(head_dim);
    for (size_t i = 0; i < head_dim; ++i) out[i < pairs ? 2 * i : 2 * (i - pairs) + 1] = x[i];
    return out;
  };
  const auto x = RandomNormal(head_dim, /*seed=*/4);
  EXPECT_TRUE(SameBits(interleave(Rope(ops(), x, {77}, head_dim, false)),
                       Rope(ops(), interleave(x), {77}, head_dim, true)));
}

// Of every dtype and of rows of any width, values that a dtype cannot hold included; with enough tokens for
// more than one thread.
TEST_P(EveryCpu, KeysAndValuesAreWrittenToTheBitAsDefined) {
  for (const KvDType dtype : kEveryKvDType) {
    for (const size_t head_dim : {2, 14, 16, 64, 102}) {
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", rows of " << head_dim);
      const size_t tokens = 80, kv_heads = 3, heads = 6, block_tokens = 4;
      std::vector<uint32_t> positions(tokens);
      for (size_t i = 0; i < tokens; ++i) positions[i] = static_cast<uint32_t>(i % block_tokens);
      auto q = RandomNormal(tokens * heads * head_dim, /*seed=*/1);
      auto k = RandomNormal(tokens * kv_heads * head_dim, /*seed=*/2);
      auto v = RandomNormal(k.size(), /*seed=*/3);
      const float extremes[] = {INFINITY, -INFINITY, NAN,   1e30f,  65519, 65520,
                                3e-8f,    1e-41f,    -0.0f, 127.0f, 2.5f,  kSmallestInt8Row,
                                464,      -464.1f};
      for (size_t i = 0; i < std::size(extremes); ++i) {
        k[i * kv_heads * head_dim] = extremes[i];
        v[(i + 1) * kv_heads * head_dim - 1] = extremes[i];
      }
      const float ties[] = {127, 0.5f, -1.5f, 2.5f};  // of int8 steps of 1
      for (size_t i = 0; i < head_dim; ++i) v[30 * kv_heads * head_dim + i] = ties[i % 4];
      std::fill_n(v.begin() + static_cast<ptrdiff_t>(20 * kv_heads * head_dim), head_dim, 0.0f);
      std::fill_n(v.begin() + static_cast<ptrdiff_t>(21 * kv_heads * head_dim), head_dim,
                  kSmallestInt8Row / 2);
      const Angles angles(positions, head_dim);
      const Places places(tokens);
      const PagedTokens batch = places.Batch(positions, kv_heads, head_dim, block_tokens);
      const KvMemory got(dtype, tokens * kv_heads * block_tokens, head_dim);
      const KvMemory want(dtype, tokens * kv_heads * block_tokens, head_dim);
      ops().rope_kv({.batch = batch,
                     .q = q.data(),
                     .k = k.data(),
                     .v = v.data(),
                     .cos = angles.cos.data(),
                     .sin = angles.sin.data(),
                     .heads = heads,
                     .kv = got.layer},
                    pool_);
      WriteKv({.batch = batch, .keys = k.data(), .values = v.data(), .kv = want.layer});
      EXPECT_EQ(got.keys, want.keys);
      EXPECT_EQ(got.values, want.values);
      EXPECT_TRUE(SameBits(got.key_scales, want.key_scales));
      EXPECT_TRUE(SameBits(got.value_scales, want.value_scales));
    }
  }
}

// A batch of tokens with biases, norms or both, and what becomes of it.
struct AdjustedHeads {
  static constexpr size_t kHeads = 6, kKvHeads = 3;

  AdjustedHeads(size_t tokens, size_t its_head_dim, bool has_biases, bool has_norms)
      : head_dim(its_head_dim),
        q(RandomNormal(tokens * kHeads * head_dim, /*seed=*/1)),
        k(RandomNormal(tokens * kKvHeads * head_dim, /*seed=*/2)),
        v(RandomNormal(k.size(), /*seed=*/3)) {
    for (size_t i = 0; i < tokens; ++i) positions.push_back(static_cast<uint32_t>(i * i % 300));
    if (has_biases) {
      q_bias = RandomNormal(kHeads * head_dim, /*seed=*/4);
      k_bias = RandomNormal(kKvHeads * head_dim, /*seed=*/5);
      v_bias = RandomNormal(kKvHeads * head_dim, /*seed=*/6);
    }
    if (has_norms) {
      q_norm = RandomNormal(head_dim, /*seed=*/7);
      k_norm = RandomNormal(head_dim, /*seed=*/8);
    }
  }
  // Token `index` alone.
  AdjustedHeads Alone(size_t index) const {
    AdjustedHeads one = *this;
    const auto keep = [&](std::vector<float>& x) {
      const size_t width = x.size() / positions.size();
      x = {x.begin() + static_cast<ptrdiff_t>(index * width),
           x.begin() + static_cast<ptrdiff_t>((index + 1) * width)};
    };
    keep(one.q);
    keep(one.k);
    keep(one.v);
    one.positions = {positions[index]};
    return one;
  }
  // q, k and v become what they are in place.
  void Run(const OpTable& ops, bool neighbours, ThreadPool& pool) {
    const auto data = [](const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); };
    const Angles angles(positions, head_dim);
    const std::vector<uint32_t> first(positions.size());  // where keys go: 0 of their block
    const Places places(positions.size());
    const KvMemory kv(KvDType::kF32, positions.size() * kKvHeads, head_dim);
    ops.rope_kv({.batch = places.Batch(first, kKvHeads, head_dim, 1),
                 .q = q.data(),
                 .k = k.data(),
                 .v = v.data(),
                 .cos = angles.cos.data(),
                 .sin = angles.sin.data(),
                 .heads = kHeads,
                 .neighbours = neighbours,
                 .kv = kv.layer,
                 .q_bias = data(q_bias),
                 .k_bias = data(k_bias),
                 .v_bias = data(v_bias),
                 .q_norm = data(q_norm),
                 .k_norm = data(k_norm),
                 .norm_epsilon = 1e-6f},
                pool);
    const KvMemory want(KvDType::kF32, positions.size() * kKvHeads, head_dim);
    WriteKv({.batch = places.Batch(first, kKvHeads, head_dim, 1),
             .keys = k.data(),
             .values = v.data(),
             .kv = want.layer});
    EXPECT_EQ(kv.keys, want.keys);
    EXPECT_EQ(kv.values, want.values);
  }

  size_t head_dim;
  std::vector<float> q, k, v, q_bias, k_bias, v_bias, q_norm, k_norm;
  std::vector<uint32_t> positions;
};

// A lane adds head_dim / 16 squares and the tree 4 times, of which the root leaves half, and half a dozen
// operations follow; then a rotation's, and the reference's two. What is rotated is as long as what comes out
// of it.
TEST_P(EveryCpu, BiasesAndHeadNormsMatchTheReference) {
  for (const size_t head_dim : {2, 6, 16, 34, 128, 256}) {
    for (const auto& [has_biases, has_norms] : {std::pair(true, false), {false, true}, {true, true}}) {
      for (const bool neighbours : {false, true}) {
        SCOPED_TRACE(testing::Message() << "heads of " << head_dim << ", biases " << has_biases << ", norms "
                                        << has_norms << ", neighbours " << neighbours);
        const AdjustedHeads in(/*tokens=*/40, head_dim, has_biases, has_norms);
        AdjustedHeads want = in, got = in;
        want.Run(ReferenceOps(), neighbours, pool_);
        got.Run(ops(), neighbours, pool_);
        EXPECT_TRUE(SameBits(got.v, want.v));
        EXPECT_EQ(SameBits(got.v, in.v), !has_biases);
        const double roundings = (has_norms ? (static_cast<double>(head_dim) / 16 + 5) / 2 + 6 + 1 : 0) + 4;
        const auto expect_near = [&](const std::vector<float>& x, const std::vector<float>& y) {
          for (size_t i = 0; i < y.size(); ++i) {
            const size_t head = i / head_dim * head_dim, element = i % head_dim, pairs = head_dim / 2;
            const size_t partner = head + (neighbours ? element ^ 1 : (element + pairs) % head_dim);
            const double length = std::hypot(y[i], y[partner]);
            ASSERT_NEAR(x[i], y[i], roundings * kRounding * 1.4143 * length) << i;
          }
        };
        expect_near(got.q, want.q);
        expect_near(got.k, want.k);
      }
    }
  }
}

// The reference, by what it is for: of norm 1 a head is as long as the root of its width; a bias moves it.
TEST(RopeKvRef, AddsBiasesThenNormalizesThenRotates) {
  ThreadPool pool(1);
  AdjustedHeads in(/*tokens=*/5, /*head_dim=*/32, true, true);
  AdjustedHeads rotated_only(/*tokens=*/5, /*head_dim=*/32, false, false);
  for (size_t i = 0; i < in.q.size(); ++i) {
    const size_t head = i / 32 * 32;
    double squares = 0;
    for (size_t e = head; e < head + 32; ++e) {
      const double x = double{in.q[e]} + in.q_bias[e % in.q_bias.size()];
      squares += x * x;
    }
    const double x = double{in.q[i]} + in.q_bias[i % in.q_bias.size()];
    rotated_only.q[i] = static_cast<float>(x / std::sqrt(squares / 32 + 1e-6) * in.q_norm[i % 32]);
  }
  in.Run(ReferenceOps(), false, pool);
  rotated_only.Run(ReferenceOps(), false, pool);
  for (size_t i = 0; i < in.q.size(); ++i) EXPECT_NEAR(in.q[i], rotated_only.q[i], 1e-6) << i;
}

TEST_P(EveryCpu, AdjustedHeadsDoNotDependOnTheBatch) {
  const AdjustedHeads in(/*tokens=*/90, /*head_dim=*/50, true, true);
  AdjustedHeads together = in;
  together.Run(ops(), false, pool_);
  for (size_t token = 0; token < 90; ++token) {
    AdjustedHeads alone = in.Alone(token);
    alone.Run(ops(), false, pool_);
    const AdjustedHeads want = together.Alone(token);
    ASSERT_TRUE(SameBits(alone.q, want.q));
    ASSERT_TRUE(SameBits(alone.k, want.k));
    ASSERT_TRUE(SameBits(alone.v, want.v));
  }
}

// A head is normalized on its own: what is not finite, or too large to square, spoils it and no other.
TEST_P(EveryCpu, AHeadThatIsNotFiniteBecomesNaNAlone) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, 3e19f}) {
    AdjustedHeads in(/*tokens=*/2, /*head_dim=*/20, false, true);
    in.q[2 * 20 + 18] = bad;
    in.Run(ops(), false, pool_);
    for (size_t i = 0; i < in.q.size(); ++i) EXPECT_EQ(std::isnan(in.q[i]), i / 20 == 2) << bad << " " << i;
  }
}

INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
