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

struct Options {
  KvDType dtype = KvDType::kF32;
  size_t block_tokens = 16;
  size_t chunk = SIZE_MAX;  // positions of one call
};

// Attention of all positions of `s`, its keys and values written to shuffled blocks.
std::vector<float> Attend(const OpTable& ops, const Sequence& s, const Options& options, ThreadPool& pool) {
  const size_t block_tokens = options.block_tokens;
  const size_t blocks = (s.length + block_tokens - 1) / block_tokens, spare = 3;
  std::vector<int32_t> table(blocks + spare);
  std::iota(table.begin(), table.end(), 0);
  for (size_t i = table.size(); i > 1; --i) std::swap(table[i - 1], table[RandomBits(block_tokens, i) % i]);
  const KvMemory kv(options.dtype, table.size() * s.h.kv_heads * block_tokens, s.h.head_dim);
  std::vector<float> out(s.q.size());
  for (size_t first = 0; first < s.length; first += std::min(options.chunk, s.length)) {
    const size_t tokens = std::min(options.chunk, s.length - first);
    std::vector<uint32_t> positions(tokens);
    std::iota(positions.begin(), positions.end(), static_cast<uint32_t>(first));
    const std::vector<const int32_t*> tables(tokens, table.data());
    const PagedTokens batch{.positions = positions.data(),
                            .block_tables = tables.data(),
                            .tokens = tokens,
                            .kv_heads = s.h.kv_heads,
                            .head_dim = s.h.head_dim,
                            .blocks = table.size(),
                            .block_tokens = block_tokens};
    const size_t kv_row = first * s.h.kv_heads * s.h.head_dim, row = first * s.h.heads * s.h.head_dim;
    const auto part = [&](const std::vector<float>& x, size_t at, size_t heads) {
      const auto begin = x.begin() + static_cast<ptrdiff_t>(at);
      return std::vector<float>(begin, begin + static_cast<ptrdiff_t>(tokens * heads * s.h.head_dim));
    };
    std::vector<float> q = part(s.q, row, s.h.heads), k = part(s.keys, kv_row, s.h.kv_heads);
    const std::vector<float> cos(tokens * s.h.head_dim, 1), sin(cos.size(), 0);  // as at position 0
    ops.rope_kv({.batch = batch,
                 .q = q.data(),
                 .k = k.data(),
                 .v = s.values.data() + kv_row,
                 .cos = cos.data(),
                 .sin = sin.data(),
                 .heads = s.h.heads,
                 .kv = kv.layer},
                pool);
    ops.paged_attention({.batch = batch,
                         .q = s.q.data() + row,
                         .out = out.data() + row,
                         .kv = kv.layer,
                         .heads = s.h.heads,
                         .scale = 1 / std::sqrt(static_cast<float>(s.h.head_dim))},
                        pool);
  }
  return out;
}

// Groups of 1, 2, 5 and 17 queries to a key-value head: part of a query block, whole ones, more than one item
// takes; rows of whole vectors, of a part of one, of an odd number of elements.
constexpr Heads kHeads[] = {{2, 2, 32}, {4, 2, 20}, {8, 1, 128}, {3, 3, 6}, {5, 1, 7}, {17, 1, 21}};

// Around the edges of vectors and, where it costs little, of two spans.
std::vector<size_t> Lengths(const Heads& h) {
  return h.head_dim <= 20 ? std::vector<size_t>{1, 256, 300} : std::vector<size_t>{2, 65, 257};
}

// A score is off by at most e = (head_dim / 16 + 8) roundings of scale * sum |q k|, which multiplies its
// weight by up to exp(2 e) (against the largest, which may be off too); exp adds 2.5e-7 twice. A span's
// values are added in kAttentionSpan steps and each merge rounds thrice. The output is an average of values,
// so all of these are fractions of the largest |value|. Both sides read the same stored rows, whose norm the
// rounding to a dtype moves by at most a fifteenth: in fp8 by a sixteenth and 2^-10 for each element, in int8
// by sqrt(head_dim) / 2 steps of max |x| / 127.
TEST_P(EveryCpu, PagedAttentionMatchesTheReference) {
  for (const KvDType dtype : kEveryKvDType) {
    for (const Heads& h : kHeads) {
      for (const size_t length : Lengths(h)) {
        SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", " << h.heads << " heads of " << h.head_dim
                                        << ", length " << length);
        const Sequence s(h, length, /*seed=*/length * 10);
        const Options options{.dtype = dtype, .block_tokens = length % 2 == 0 ? size_t{16} : 7};
        const auto want = Attend(ReferenceOps(), s, options, pool_), got = Attend(ops(), s, options, pool_);
        double largest = 0, score = 0;
        for (const float value : s.values) largest = std::max<double>(largest, 1.07 * std::abs(value));
        const auto squares = [&](const std::vector<float>& x, size_t row) {
          double sum = 0;
          for (size_t d = 0; d < h.head_dim; ++d) sum += double{x[row + d]} * x[row + d];
          return std::sqrt(sum);
        };
        double longest_q = 0, longest_key = 0;  // Cauchy and Schwarz: sum |q k| <= |q| |k|
        for (size_t row = 0; row < s.q.size(); row += h.head_dim)
          longest_q = std::max(longest_q, squares(s.q, row));
        for (size_t row = 0; row < s.keys.size(); row += h.head_dim) {
          longest_key = std::max(longest_key, 1.07 * squares(s.keys, row));
        }
        score = longest_q * longest_key / std::sqrt(static_cast<double>(h.head_dim));
        const double e = (static_cast<double>(h.head_dim) / 16 + 8) * kRounding * score;
        const double steps = kAttentionSpan + 3 * static_cast<double>(length) / kAttentionSpan + 10;
        const double bound = largest * (std::expm1(2 * e) + 5e-7 + steps * kRounding);
        for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], bound) << i;
      }
    }
  }
}

TEST_P(EveryCpu, PagedAttentionDoesNotDependOnBlocksChunksOrThreads) {
  ThreadPool one(1), three(3);
  for (const KvDType dtype : kEveryKvDType) {
    for (const Heads& h : kHeads) {
      const Sequence s(h, Lengths(h).back(), /*seed=*/5);
      const auto want = Attend(ops(), s, {.dtype = dtype}, one);
      for (const size_t block_tokens : {5, 200}) {
        for (const size_t chunk : {7, 64}) {
          SCOPED_TRACE(testing::Message()
                       << KvDTypeName(dtype) << ", blocks of " << block_tokens << ", chunks of " << chunk);
          const Options options{.dtype = dtype, .block_tokens = block_tokens, .chunk = chunk};
          EXPECT_TRUE(SameBits(Attend(ops(), s, options, chunk % 2 == 0 ? pool_ : three), want));
        }
      }
      EXPECT_TRUE(SameBits(Attend(ops(), s, {.dtype = dtype, .block_tokens = 1, .chunk = 1}, three), want));
    }
  }
}

// Decodes of many sequences in one call, some of which read far more than others: threads then share out the
// spans of one, or whole sequences.
TEST_P(EveryCpu, ATokensAttentionDoesNotDependOnTheOthersInTheBatch) {
  const Heads h{6, 2, 20};
  const size_t width = h.heads * h.head_dim, kv_width = h.kv_heads * h.head_dim, block_tokens = 16;
  const std::vector<size_t> lengths = {1, 900, 256, 40, 257, 3, 512, 700};
  size_t blocks = 0;
  std::vector<std::vector<int32_t>> tables;
  for (const size_t length : lengths) {
    tables.emplace_back((length + block_tokens - 1) / block_tokens);
    for (int32_t& block : tables.back()) block = static_cast<int32_t>(blocks++);
  }
  const std::vector<float> q = RandomNormal(lengths.size() * width, /*seed=*/20);
  for (const KvDType dtype : kEveryKvDType) {
    const KvMemory kv(dtype, blocks * h.kv_heads * block_tokens, h.head_dim);
    for (size_t i = 0; i < lengths.size(); ++i) {
      const auto keys = RandomNormal(lengths[i] * kv_width, /*seed=*/30 + i);
      const auto values = RandomNormal(lengths[i] * kv_width, /*seed=*/50 + i);
      std::vector<uint32_t> positions(lengths[i]);
      std::iota(positions.begin(), positions.end(), 0);
      const std::vector<const int32_t*> of_each(lengths[i], tables[i].data());
      WriteKv({.batch = {.positions = positions.data(),
                         .block_tables = of_each.data(),
                         .tokens = lengths[i],
                         .kv_heads = h.kv_heads,
                         .head_dim = h.head_dim,
                         .blocks = blocks,
                         .block_tokens = block_tokens},
               .keys = keys.data(),
               .values = values.data(),
               .kv = kv.layer});
    }
    // The last position of each of these sequences.
    const auto decode = [&](const std::vector<size_t>& sequences, ThreadPool& pool) {
      std::vector<uint32_t> positions;
      std::vector<const int32_t*> of_each;
      std::vector<float> queries;
      for (const size_t i : sequences) {
        positions.push_back(static_cast<uint32_t>(lengths[i] - 1));
        of_each.push_back(tables[i].data());
        queries.insert(queries.end(), &q[i * width], &q[i * width] + width);
      }
      std::vector<float> out(queries.size());
      ops().paged_attention({.batch = {.positions = positions.data(),
                                       .block_tables = of_each.data(),
                                       .tokens = sequences.size(),
                                       .kv_heads = h.kv_heads,
                                       .head_dim = h.head_dim,
                                       .blocks = blocks,
                                       .block_tokens = block_tokens},
                             .q = queries.data(),
                             .out = out.data(),
                             .kv = kv.layer,
                             .heads = h.heads,
                             .scale = 0.2f},
                            pool);
      return out;
    };
    ThreadPool one(1), seven(7);
    std::vector<float> alone;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const auto out = decode({i}, one);
      EXPECT_TRUE(SameBits(decode({i}, seven), out)) << KvDTypeName(dtype) << ", " << lengths[i];
      alone.insert(alone.end(), out.begin(), out.end());
    }
    const std::vector<size_t> all = {0, 1, 2, 3, 4, 5, 6, 7};
    EXPECT_TRUE(SameBits(decode(all, one), alone)) << KvDTypeName(dtype);
    EXPECT_TRUE(SameBits(decode(all, pool_), alone)) << KvDTypeName(dtype);
    EXPECT_TRUE(SameBits(decode(all, seven), alone)) << KvDTypeName(dtype);
  }
}

// What a single position of `values` is read back as: its softmax is 1.
std::vector<float> RoundTrip(const OpTable& ops, KvDType dtype, const std::vector<float>& values,
                             ThreadPool& pool) {
  Sequence s({1, 1, values.size()}, 1, /*seed=*/8);
  s.values = values;
  return Attend(ops, s, {.dtype = dtype}, pool);
}

TEST_P(EveryCpu, StoredRowsAreWithinTheErrorOfTheirDTypeAndTheSameForEveryBackend) {
  for (const size_t head_dim : {1, 7, 16, 33, 64}) {
    for (const float magnitude : {1e-30f, 1e-6f, 1e-3f, 1.0f, 100.0f, 1e3f}) {
      SCOPED_TRACE(testing::Message() << head_dim << " elements of about " << magnitude);
      std::vector<float> row = RandomNormal(head_dim, /*seed=*/head_dim);
      for (float& x : row) x *= magnitude;
      double largest = 0;
      for (const float x : row) largest = std::max<double>(largest, std::abs(x));
      for (const KvDType dtype : kEveryKvDType) {
        if (dtype == KvDType::kFp8 && largest > 464) continue;  // NaN: see below
        const auto got = RoundTrip(ops(), dtype, row, pool_);
        EXPECT_TRUE(SameBits(got, RoundTrip(ReferenceOps(), dtype, row, pool_))) << KvDTypeName(dtype);
        for (size_t d = 0; d < head_dim; ++d) {
          const double x = row[d], size = std::abs(x);
          const double bound = dtype == KvDType::kF32    ? 0
                               : dtype == KvDType::kF16  ? std::max(0x1p-11 * size, 0x1p-25)
                               : dtype == KvDType::kBF16 ? 0x1p-8 * size
                               : dtype == KvDType::kFp8  ? std::max(0x1p-4 * size, 0x1p-10)
                                                        // Half a step; scale and quotient are rounded too.
                                                        : largest / 127 * (0.5 + 127 * 3 * kRounding);
          ASSERT_NEAR(got[d], x, bound) << KvDTypeName(dtype) << ", element " << d;
        }
      }
    }
  }
}

TEST_P(EveryCpu, Int8RowsKeepTheirLargestElementAndRoundTiesToEven) {
  const std::vector<float> steps = {127, -127, 0.5f, 1.5f, -0.5f, -2.5f, 3, 0};  // scale 1
  EXPECT_EQ(RoundTrip(ops(), KvDType::kInt8, steps, pool_),
            (std::vector<float>{127, -127, 0, 2, 0, -2, 3, 0}));
  const float tiny = kSmallestInt8Row / 2;
  for (const auto& row : {std::vector<float>(5, 0.0f), std::vector<float>(5, tiny)}) {
    EXPECT_EQ(RoundTrip(ops(), KvDType::kInt8, row, pool_), std::vector<float>(5, 0.0f));
  }
  for (const float largest : {kSmallestInt8Row, 1e38f}) {
    const float got = RoundTrip(ops(), KvDType::kInt8, {largest, 0, -largest}, pool_)[0];
    EXPECT_NEAR(got / largest, 1, 2 * kRounding) << largest;
  }
}

// A broken activation must reach the sampler, which reports it, whatever the cache makes of it; and it must
// not reach the positions before it.
TEST_P(EveryCpu, WhatADTypeCannotHoldIsNaNForItsOwnAndLaterPositionsOnly) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const Heads h{4, 2, 20};
  const size_t length = 70, bad = 66, kv_width = h.kv_heads * h.head_dim, width = h.heads * h.head_dim;
  const Sequence good(h, length, /*seed=*/9);
  for (const KvDType dtype : kEveryKvDType) {
    std::vector<float> broken = {nan};
    if (dtype != KvDType::kF32) broken.insert(broken.end(), {infinity, -infinity});
    if (dtype == KvDType::kF16) broken.insert(broken.end(), {65520, -1e9f});
    if (dtype == KvDType::kBF16) broken.push_back(std::numeric_limits<float>::max());
    if (dtype == KvDType::kFp8) broken.insert(broken.end(), {464.1f, -1e9f});
    const auto want = Attend(ops(), good, {.dtype = dtype}, pool_);
    for (const float x : broken) {
      for (const bool is_key : {true, false}) {
        SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", " << x << (is_key ? " key" : " value"));
        Sequence s = good;
        (is_key ? s.keys : s.values)[bad * kv_width + 3] = x;  // of key-value head 0: query heads 0 and 1
        const auto got = Attend(ops(), s, {.dtype = dtype}, pool_);
        const auto before = static_cast<ptrdiff_t>(bad * width);
        EXPECT_TRUE(SameBits({got.begin(), got.begin() + before}, {want.begin(), want.begin() + before}));
        for (size_t i = bad * width; i < got.size(); ++i) {
          const size_t head = i % width / h.head_dim, d = i % h.head_dim;
          if (head >= 2) {
            EXPECT_EQ(got[i], want[i]) << i;
          } else if (is_key || d == 3 || dtype == KvDType::kInt8) {
            EXPECT_TRUE(std::isnan(got[i])) << i;
          }
        }
      }
    }
  }
}

TEST_P(EveryCpu, TheFirstPositionAttendsToItselfAlone) {
  const Heads h{4, 2, 32};
  const Sequence s(h, 1, /*seed=*/6);
  const auto out = Attend(ops(), s, {}, pool_);
  for (size_t head = 0; head < 4; ++head) {
    for (size_t d = 0; d < 32; ++d) EXPECT_EQ(out[head * 32 + d], s.values[head / 2 * 32 + d]);
  }
}

// Largest scores of 3e4 and differences of that size: exp may neither overflow nor divide by zero.
TEST_P(EveryCpu, PagedAttentionTakesScoresOfAnySize) {
  Sequence s({2, 1, 32}, 130, /*seed=*/7);
  for (float& x : s.q) x *= 100;
  for (float& x : s.keys) x *= 100;
  const auto want = Attend(ReferenceOps(), s, {}, pool_), got = Attend(ops(), s, {}, pool_);
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
