#include "kernels/rope/rope_kv.h"

#include <cmath>
#include <limits>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

struct Angles {
  Angles(const std::vector<uint32_t>& positions, size_t head_dim)
      : cos(positions.size() * head_dim / 2), sin(cos.size()) {
    RopeAngles(positions.data(), positions.size(), 10000, head_dim, cos.data(), sin.data());
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
  std::vector<float> q = x, k = x;
  ops.rope_kv({.batch = places.Batch(first, heads, head_dim, 1),
               .q = q.data(),
               .k = k.data(),
               .v = x.data(),
               .cos = angles.cos.data(),
               .sin = angles.sin.data(),
               .heads = heads,
               .neighbours = neighbours,
               .kv = kv.layer},
              pool);
  EXPECT_TRUE(SameBits(q, k));
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

TEST(RopeAngles, DoNotDependOnTheBatch) {
  const Angles together({3, 70'000, 12}, 64), alone({70'000}, 64);
  EXPECT_TRUE(SameBits({together.cos.begin() + 32, together.cos.begin() + 64}, alone.cos));
  EXPECT_TRUE(SameBits({together.sin.begin() + 32, together.sin.begin() + 64}, alone.sin));
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
