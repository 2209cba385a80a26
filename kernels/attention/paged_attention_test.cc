#include "kernels/attention/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/rng.h"
#include "kernels/op_testing.h"

namespace terrace {
namespace {

struct Heads {
  size_t heads, kv_heads, head_dim;
};

// One sequence of `length` positions with random queries, keys and values; everything is a function of the
// seed.
struct Sequence {
  Sequence(const Heads& shape, size_t positions, uint64_t seed)
      : h(shape),
        length(positions),
        q(RandomNormal(length * h.heads * h.head_dim, seed)),
        keys(RandomNormal(length * h.kv_heads * h.head_dim, seed + 1)),
        values(RandomNormal(length * h.kv_heads * h.head_dim, seed + 2)) {}
  Heads h;
  size_t length;
  std::vector<float> q, keys, values;
};

// Attention of all positions of `s`, its keys and values written to shuffled blocks of a pool of NaN.
std::vector<float> Attend(const OpTable& ops, const Sequence& s, size_t block_tokens, size_t chunk,
                          ThreadPool& pool) {
  const size_t blocks = (s.length + block_tokens - 1) / block_tokens, spare = 3;
  std::vector<int32_t> table(blocks + spare);
  std::iota(table.begin(), table.end(), 0);
  for (size_t i = table.size(); i > 1; --i) std::swap(table[i - 1], table[RandomBits(block_tokens, i) % i]);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> key_pool(table.size() * s.h.kv_heads * block_tokens * s.h.head_dim, nan),
      value_pool = key_pool;
  std::vector<float> out(s.q.size());
  for (size_t first = 0; first < s.length; first += chunk) {
    const size_t tokens = std::min(chunk, s.length - first);
    std::vector<uint32_t> positions(tokens);
    std::iota(positions.begin(), positions.end(), static_cast<uint32_t>(first));
    const std::vector<const int32_t*> tables(tokens, table.data());
    const PagedTokens batch{.positions = positions.data(),
                            .block_tables = tables.data(),
                            .tokens = tokens,
                            .kv_heads = s.h.kv_heads,
                            .head_dim = s.h.head_dim,
                            .block_tokens = block_tokens};
    const size_t kv_row = first * s.h.kv_heads * s.h.head_dim, row = first * s.h.heads * s.h.head_dim;
    ops.write_kv({.batch = batch,
                  .keys = s.keys.data() + kv_row,
                  .values = s.values.data() + kv_row,
                  .key_pool = key_pool.data(),
                  .value_pool = value_pool.data()});
    ops.paged_attention({.batch = batch,
                         .q = s.q.data() + row,
                         .out = out.data() + row,
                         .key_pool = key_pool.data(),
                         .value_pool = value_pool.data(),
                         .heads = s.h.heads,
                         .scale = 1 / std::sqrt(static_cast<float>(s.h.head_dim))},
                        pool);
  }
  return out;
}

constexpr Heads kHeads[] = {{2, 2, 32}, {4, 2, 20}, {8, 1, 128}, {3, 3, 6}};

// A score is off by at most e = (head_dim / 16 + 8) roundings of scale * sum |q k|, which multiplies its
// weight by up to exp(2 e) (against the largest, which may be off too); exp adds 2.5e-7 twice. A chunk's
// values are added in 64 steps and each merge rounds twice. The output is an average of values, so all of
// these are fractions of the largest |value|.
TEST_P(EveryCpu, PagedAttentionMatchesTheReference) {
  for (const Heads& h : kHeads) {
    for (const size_t length : {1, 2, 63, 64, 65, 200}) {
      SCOPED_TRACE(testing::Message() << h.heads << " heads of " << h.head_dim << ", length " << length);
      const Sequence s(h, length, /*seed=*/length * 10);
      const auto want = Attend(ReferenceOps(), s, 16, length, pool_),
                 got = Attend(ops(), s, 16, length, pool_);
      double largest = 0, score = 0;
      for (const float value : s.values) largest = std::max<double>(largest, std::abs(value));
      const auto squares = [&](const std::vector<float>& x, size_t row) {
        double sum = 0;
        for (size_t d = 0; d < h.head_dim; ++d) sum += double{x[row + d]} * x[row + d];
        return std::sqrt(sum);
      };
      double longest_q = 0, longest_key = 0;  // Cauchy and Schwarz: sum |q k| <= |q| |k|
      for (size_t row = 0; row < s.q.size(); row += h.head_dim)
        longest_q = std::max(longest_q, squares(s.q, row));
      for (size_t row = 0; row < s.keys.size(); row += h.head_dim) {
        longest_key = std::max(longest_key, squares(s.keys, row));
      }
      score = longest_q * longest_key / std::sqrt(static_cast<double>(h.head_dim));
      const double e = (static_cast<double>(h.head_dim) / 16 + 8) * kRounding * score;
      const double steps = 64 + 3 * static_cast<double>(length) / 64 + 10;
      const double bound = largest * (std::expm1(2 * e) + 5e-7 + steps * kRounding);
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], bound) << i;
    }
  }
}

TEST_P(EveryCpu, PagedAttentionDoesNotDependOnBlocksChunksOrThreads) {
  ThreadPool one(1), three(3);
  for (const Heads& h : kHeads) {
    const Sequence s(h, 150, /*seed=*/5);
    const auto want = Attend(ops(), s, 16, 150, one);
    for (const size_t block_tokens : {1, 5, 16, 64, 200}) {
      for (const size_t chunk : {1, 7, 64, 149}) {
        SCOPED_TRACE(testing::Message() << "blocks of " << block_tokens << ", chunks of " << chunk);
        EXPECT_TRUE(SameBits(Attend(ops(), s, block_tokens, chunk, chunk % 2 == 0 ? pool_ : three), want));
      }
    }
  }
}

TEST_P(EveryCpu, TheFirstPositionAttendsToItselfAlone) {
  const Heads h{4, 2, 32};
  const Sequence s(h, 1, /*seed=*/6);
  const auto out = Attend(ops(), s, 16, 1, pool_);
  for (size_t head = 0; head < 4; ++head) {
    for (size_t d = 0; d < 32; ++d) EXPECT_EQ(out[head * 32 + d], s.values[head / 2 * 32 + d]);
  }
}

// Largest scores of 3e4 and differences of that size: exp may neither overflow nor divide by zero.
TEST_P(EveryCpu, PagedAttentionTakesScoresOfAnySize) {
  Sequence s({2, 1, 32}, 130, /*seed=*/7);
  for (float& x : s.q) x *= 100;
  for (float& x : s.keys) x *= 100;
  const auto want = Attend(ReferenceOps(), s, 16, 130, pool_), got = Attend(ops(), s, 16, 130, pool_);
  // Scores are off by up to 10 roundings of 3e5, that is 0.2, so only near ties can differ: nearly all are
  // equal.
  size_t far = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << i;
    far += std::abs(got[i] - want[i]) > 0.2 ? 1 : 0;
  }
  EXPECT_LE(far, got.size() / 100);
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
