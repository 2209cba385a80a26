#include "kernels/attention/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/rng.h"
#include "kernels/attention/attention_runs.h"
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

struct Limits {
  uint32_t window = 0;
  float softcap = 0;
};

struct Options {
  KvDType dtype = KvDType::kF32;
  size_t block_tokens = 16;
  size_t chunk = SIZE_MAX;  // positions of one call
  Limits limits = {};
};

// What lies before the window of position `position` is gone: its rows are NaN, and where a whole block is,
// its place in the table leads nowhere.
void LeaveBehind(const PagedTokens& batch, const PagedAttentionArgs& args, size_t position, KvMemory& kv,
                 std::vector<int32_t>& table) {
  const size_t row_bytes = batch.head_dim * KvElementBytes(kv.layer.dtype);
  const size_t begin = args.WindowBegin(position);
  for (size_t i = 0; i < begin; ++i) {
    if (table[i / batch.block_tokens] == INT32_MAX) continue;
    for (size_t head = 0; head < batch.kv_heads; ++head) {
      const size_t row = batch.Row(0, head, i);
      std::fill_n(&kv.keys[row * row_bytes], row_bytes, std::byte{0xff});
      std::fill_n(&kv.values[row * row_bytes], row_bytes, std::byte{0xff});
      if (HasScales(kv.layer.dtype)) kv.key_scales[row] = kv.value_scales[row] = std::nanf("");
    }
  }
  std::fill_n(table.begin(), begin / batch.block_tokens, INT32_MAX);
}

// Attention of all positions of `s`, its keys and values written to shuffled blocks; each call finds nothing
// that is before the windows of all its positions.
std::vector<float> Attend(const OpTable& ops, const Sequence& s, const Options& options, ThreadPool& pool) {
  const size_t block_tokens = options.block_tokens;
  const size_t blocks = (s.length + block_tokens - 1) / block_tokens, spare = 3;
  std::vector<int32_t> table(blocks + spare);
  std::iota(table.begin(), table.end(), 0);
  for (size_t i = table.size(); i > 1; --i) std::swap(table[i - 1], table[RandomBits(block_tokens, i) % i]);
  KvMemory kv(options.dtype, table.size() * s.h.kv_heads * block_tokens, s.h.head_dim);
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
    std::vector<float> q = part(s.q, row, s.h.heads), k = part(s.keys, kv_row, s.h.kv_heads),
                       v = part(s.values, kv_row, s.h.kv_heads);
    const std::vector<float> cos(tokens * s.h.head_dim, 1), sin(cos.size(), 0);  // as at position 0
    ops.rope_kv({.batch = batch,
                 .q = q.data(),
                 .k = k.data(),
                 .v = v.data(),
                 .cos = cos.data(),
                 .sin = sin.data(),
                 .heads = s.h.heads,
                 .kv = kv.layer},
                pool);
    const PagedAttentionArgs args{.batch = batch,
                                  .q = s.q.data() + row,
                                  .out = out.data() + row,
                                  .kv = kv.layer,
                                  .heads = s.h.heads,
                                  .scale = 1 / std::sqrt(static_cast<float>(s.h.head_dim)),
                                  .window = options.limits.window,
                                  .softcap = options.limits.softcap};
    LeaveBehind(batch, args, first, kv, table);
    ops.paged_attention(args, pool);
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

// How far from the reference an output may be.
// A score is off by at most e = (head_dim / 16 + 8) roundings of scale * sum |q k|, which a cap makes smaller
// but for 4.2e-7 of the cap (CapScores). That multiplies its weight by up to exp(2 e) (against the largest,
// which may be off too); exp adds 2.5e-7 twice. A span's values are added in kAttentionSpan steps and each
// merge rounds thrice. The output is an average of values, so all of these are fractions of the largest
// |value|. Both sides read the same stored rows, whose norm the rounding to a dtype moves by at most a
// fifteenth: in fp8 by a sixteenth and 2^-10 for each element, in int8 by sqrt(head_dim) / 2 steps of
// max |x| / 127.
double BoundOf(const Sequence& s, float softcap) {
  const Heads& h = s.h;
  double largest = 0;
  for (const float value : s.values) largest = std::max<double>(largest, 1.07 * std::abs(value));
  const auto norm = [&](const std::vector<float>& x, size_t row) {
    double sum = 0;
    for (size_t d = 0; d < h.head_dim; ++d) sum += double{x[row + d]} * x[row + d];
    return std::sqrt(sum);
  };
  double longest_q = 0, longest_key = 0;  // Cauchy and Schwarz: sum |q k| <= |q| |k|
  for (size_t row = 0; row < s.q.size(); row += h.head_dim) longest_q = std::max(longest_q, norm(s.q, row));
  for (size_t row = 0; row < s.keys.size(); row += h.head_dim) {
    longest_key = std::max(longest_key, 1.07 * norm(s.keys, row));
  }
  const double score = longest_q * longest_key / std::sqrt(static_cast<double>(h.head_dim));
  const double e = (static_cast<double>(h.head_dim) / 16 + 8) * kRounding * score + 4.2e-7 * softcap;
  const double steps = kAttentionSpan + 3 * static_cast<double>(s.length) / kAttentionSpan + 10;
  return largest * (std::expm1(2 * e) + 5e-7 + steps * kRounding);
}

TEST_P(EveryCpu, PagedAttentionMatchesTheReference) {
  for (const KvDType dtype : kEveryKvDType) {
    for (const Heads& h : kHeads) {
      for (const size_t length : Lengths(h)) {
        SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", " << h.heads << " heads of " << h.head_dim
                                        << ", length " << length);
        const Sequence s(h, length, /*seed=*/length * 10);
        const Options options{.dtype = dtype, .block_tokens = length % 2 == 0 ? size_t{16} : 7};
        const auto want = Attend(ReferenceOps(), s, options, pool_), got = Attend(ops(), s, options, pool_);
        const double bound = BoundOf(s, 0);
        for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], bound) << i;
      }
    }
  }
}

// Windows that begin anywhere in a vector and a span, of one position to more than there are; caps that most
// scores are far below, and that they are at.
constexpr Limits kLimits[] = {{.window = 1},     {.window = 2, .softcap = 2},
                              {.window = 21},    {.window = 256, .softcap = 30},
                              {.window = 257},   {.window = 512},
                              {.softcap = 0.5f}, {.window = 1000, .softcap = 5}};

// Groups of 1, 2, 5 and 17 queries, over parts of three spans, once in one call and once in calls that find
// nothing before their windows.
TEST_P(EveryCpu, WindowsAndCapsMatchTheReferenceWhateverIsBeforeTheWindow) {
  constexpr Heads kShapes[] = {{5, 1, 7}, {17, 1, 6}, {2, 2, 20}, {4, 2, 16}};
  ThreadPool one(1);
  for (size_t i = 0; i < 2 * std::size(kLimits); ++i) {
    const Limits limits = kLimits[i % std::size(kLimits)];
    const KvDType dtype = kEveryKvDType[i % std::size(kEveryKvDType)];
    const Heads h = kShapes[(i + i / std::size(kLimits)) % std::size(kShapes)];
    SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", " << h.heads << " heads of " << h.head_dim
                                    << ", window " << limits.window << ", cap " << limits.softcap);
    const Sequence s(h, 530, /*seed=*/i);
    const Options whole{.dtype = dtype, .limits = limits};
    const Options cut{.dtype = dtype, .block_tokens = 5, .chunk = i % 2 == 0 ? 11u : 64u, .limits = limits};
    const auto want = Attend(ReferenceOps(), s, whole, one), got = Attend(ops(), s, whole, one);
    const double bound = BoundOf(s, limits.softcap);
    for (size_t j = 0; j < got.size(); ++j) ASSERT_NEAR(got[j], want[j], bound) << j;
    EXPECT_TRUE(SameBits(Attend(ops(), s, cut, i % 2 == 0 ? one : pool_), got));
  }
}

TEST_P(EveryCpu, AWindowOfTheWholeContextChangesNoBit) {
  for (const KvDType dtype : kEveryKvDType) {
    const Sequence s({4, 2, 20}, 300, /*seed=*/12);
    const auto want = Attend(ops(), s, {.dtype = dtype}, pool_);
    EXPECT_TRUE(SameBits(Attend(ops(), s, {.dtype = dtype, .limits = {.window = 300}}, pool_), want));
  }
}

// What is before a window costs nothing: of a run of four tokens and of one token.
TEST(AttentionRuns, BeginWhereTheFirstWindowDoes) {
  const uint32_t positions[] = {100'000, 100'001, 100'002, 100'003, 700};
  const int32_t first_table = 0, second_table = 0;
  const int32_t* const tables[] = {&first_table, &first_table, &first_table, &first_table, &second_table};
  PagedAttentionArgs args{
      .batch = {.positions = positions, .block_tables = tables, .tokens = 5, .kv_heads = 2},
      .kv = {},
      .heads = 2};
  const struct {
    uint32_t window;
    size_t first_span, spans, second_first_span, second_spans;
  } cases[] = {{0, 0, 391, 0, 3},
               {1, 390, 1, 2, 1},
               {300, 389, 2, 1, 2},
               {4096, 374, 17, 0, 3},
               {1 << 20, 0, 391, 0, 3}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.window);
    args.window = c.window;
    const auto runs = AttentionRuns(args);
    ASSERT_EQ(runs.size(), 4u);
    for (const AttentionRun& run : runs) {
      EXPECT_EQ(run.first_span, run.first == 0 ? c.first_span : c.second_first_span);
      EXPECT_EQ(run.spans, run.first == 0 ? c.spans : c.second_spans);
    }
    EXPECT_EQ(runs.back().unit + runs.back().units(), 2 * (4 * c.spans + c.second_spans));
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
    Limits limits;
    // These positions of sequences.
    struct Place {
      size_t sequence, position;
    };
    const auto attend = [&](const std::vector<Place>& places, ThreadPool& pool) {
      std::vector<uint32_t> positions;
      std::vector<const int32_t*> of_each;
      std::vector<float> queries;
      for (const auto& [i, position] : places) {
        positions.push_back(static_cast<uint32_t>(position));
        of_each.push_back(tables[i].data());
        queries.insert(queries.end(), &q[i * width], &q[i * width] + width);
      }
      std::vector<float> out(queries.size());
      ops().paged_attention({.batch = {.positions = positions.data(),
                                       .block_tables = of_each.data(),
                                       .tokens = places.size(),
                                       .kv_heads = h.kv_heads,
                                       .head_dim = h.head_dim,
                                       .blocks = blocks,
                                       .block_tokens = block_tokens},
                             .q = queries.data(),
                             .out = out.data(),
                             .kv = kv.layer,
                             .heads = h.heads,
                             .scale = 0.2f,
                             .window = limits.window,
                             .softcap = limits.softcap},
                            pool);
      return out;
    };
    ThreadPool one(1), seven(7);
    std::vector<Place> last_ones;
    for (size_t i = 0; i < lengths.size(); ++i) last_ones.push_back({i, lengths[i] - 1});
    // Of one sequence in any order: some spans are no one's.
    const std::vector<Place> scattered = {{1, 899}, {1, 3}, {1, 500}, {1, 899}, {1, 256}, {7, 640}};
    for (const Limits& each : std::to_array<Limits>({{}, {.window = 100}, {.window = 600, .softcap = 3}})) {
      limits = each;
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", window " << limits.window);
      for (const std::vector<Place>& places : {last_ones, scattered}) {
        std::vector<float> alone;
        for (const Place& place : places) {
          const auto out = attend({place}, one);
          EXPECT_TRUE(SameBits(attend({place}, seven), out)) << place.position;
          alone.insert(alone.end(), out.begin(), out.end());
        }
        EXPECT_TRUE(SameBits(attend(places, one), alone));
        EXPECT_TRUE(SameBits(attend(places, pool_), alone));
        EXPECT_TRUE(SameBits(attend(places, seven), alone));
      }
    }
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

// Of 1e40, with a cap: as the reference, which knows how large they are.
TEST_P(EveryCpu, ScoresThatOverflowAreAtTheCap) {
  Sequence s({2, 1, 1}, 40, /*seed=*/13);
  for (float& x : s.q) x *= 1e30f;
  for (float& x : s.keys) x *= 1e10f;
  const Options options{.limits = {.window = 30, .softcap = 2}};
  const auto want = Attend(ReferenceOps(), s, options, pool_), got = Attend(ops(), s, options, pool_);
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5) << i;
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
