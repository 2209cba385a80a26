#include "kernels/attention/prefill_attention_device.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <ostream>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/attention/hopper_prefill_device.h"
#include "kernels/attention/prefill_attention_testing.h"

namespace terrace {
namespace {

bool HasLimits(const GpuAttentionArgs& args) { return args.window != 0 || args.softcap != 0; }

template <KvDType kDType, uint32_t kHeadDim>
void RunKernel(const GpuAttentionArgs& args, uint64_t seed) {
  using L = prefill::Layout<kDType, kHeadDim>;
  simt::RunSeeded(seed, {args.heads, args.run_count, 1}, L::kThreads, L::kBytes,
                  HasLimits(args) ? PrefillAttentionKernel<kDType, kHeadDim, true>
                                  : PrefillAttentionKernel<kDType, kHeadDim, false>,
                  args);
}

template <KvDType kDType>
void RunDType(const GpuAttentionArgs& args, uint64_t seed) {
  switch (args.batch.head_dim) {
    case 32:
      return RunKernel<kDType, 32>(args, seed);
    case 64:
      return RunKernel<kDType, 64>(args, seed);
    case 128:
      return RunKernel<kDType, 128>(args, seed);
    default:
      return RunKernel<kDType, 256>(args, seed);
  }
}

// The kernel's output; what it does not write is NaN.
std::vector<uint16_t> Attend(PrefillBatch& batch, uint64_t seed) {
  std::vector<uint16_t> out(batch.tokens() * batch.width(), 0xffff);
  GpuAttentionArgs args = batch.Args();
  args.out = out.data();
  switch (args.kv.dtype) {
    case KvDType::kF16:
      RunDType<KvDType::kF16>(args, seed);
      break;
    case KvDType::kInt8:
      RunDType<KvDType::kInt8>(args, seed);
      break;
    case KvDType::kFp8:
      RunDType<KvDType::kFp8>(args, seed);
      break;
    default:
      RunDType<KvDType::kBF16>(args, seed);
  }
  return out;
}

// The same of the kernel for Hopper, in a grid of `blocks`.
template <uint32_t kHeadDim, uint32_t kKeys>
std::vector<uint16_t> AttendHopper(PrefillBatch& batch, uint64_t seed, uint32_t blocks = 2) {
  using L = hopper_prefill::Layout<kHeadDim, kKeys, false>;
  using WithLimits = hopper_prefill::Layout<kHeadDim, kKeys, true>;
  std::vector<uint16_t> out(batch.tokens() * batch.width(), 0xffff);
  GpuAttentionArgs args = batch.Args();
  args.out = out.data();
  const bool has_limits = HasLimits(args);
  simt::RunSeeded(seed, {blocks, 1, 1}, hopper_prefill::kThreads, has_limits ? WithLimits::kBytes : L::kBytes,
                  has_limits ? HopperPrefillKernel<WithLimits> : HopperPrefillKernel<L>, args);
  return out;
}

// What a rule is tested of: a kernel, and the smallest head_dim it has in such a shape.
struct Kernel {
  const char* name;
  std::function<std::vector<uint16_t>(PrefillBatch& batch, uint64_t seed)> attend;
  uint32_t head_dim;
  std::vector<KvDType> dtypes;
};
const Kernel kKernels[] = {
    {"mma", Attend, 32, {KvDType::kBF16, KvDType::kF16, KvDType::kInt8, KvDType::kFp8}},
    {"mma, heads of 256", Attend, 256, {KvDType::kBF16, KvDType::kInt8}},
    {"Hopper",
     [](PrefillBatch& batch, uint64_t seed) { return AttendHopper<64, 128>(batch, seed); },
     64,
     {KvDType::kBF16}},
    {"Hopper, 64 keys",
     [](PrefillBatch& batch, uint64_t seed) { return AttendHopper<64, 64>(batch, seed); },
     64,
     {KvDType::kBF16}},
};

// Windows and caps that a rule is tested of: bf16 has all, what other dtypes do in their own way needs a few,
// and so do heads of 256, which are slow here.
struct Limits {
  uint32_t window = 0;
  float softcap = 0;
};
std::vector<Limits> LimitsOf(const Kernel& kernel, KvDType dtype, const std::vector<Limits>& few,
                             std::vector<Limits> more) {
  if (dtype != KvDType::kBF16 || kernel.head_dim > 128) return few;
  more.insert(more.begin(), few.begin(), few.end());
  return more;
}
std::ostream& operator<<(std::ostream& out, const Limits& limits) {
  return out << "window " << limits.window << ", cap " << limits.softcap;
}

std::vector<uint32_t> EveryToken(const PrefillBatch& batch) {
  std::vector<uint32_t> tokens(batch.tokens());
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

void ExpectReference(PrefillBatch& batch, const std::vector<uint16_t>& out) {
  const auto expected = batch.Reference(EveryToken(batch));
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_NEAR(FloatFromBF16(out[i]), expected.out[i], expected.tolerance[i])
        << "token " << i / batch.width() << ", element " << i % batch.width();
  }
}

void ExpectFinite(const std::vector<uint16_t>& out) {
  EXPECT_TRUE(
      std::all_of(out.begin(), out.end(), [](uint16_t x) { return std::isfinite(FloatFromBF16(x)); }));
}

template <uint32_t kHeadDim>
void ExpectSwizzle() {
  using prefill::TileByte;
  std::set<uint32_t> chunks;
  for (uint32_t row = 0; row < 64; ++row) {
    for (uint32_t chunk = 0; chunk < kHeadDim / 8; ++chunk) {
      EXPECT_EQ(TileByte<kHeadDim>(row, chunk), TileByte<kHeadDim>(row, chunk % 2) ^ (32 * (chunk / 2)));
      EXPECT_EQ(TileByte<kHeadDim>(row, chunk),
                TileByte<kHeadDim>(row % 16, chunk) + row / 16 * 32 * kHeadDim);
      chunks.insert(TileByte<kHeadDim>(row, chunk));
    }
  }
  EXPECT_EQ(chunks.size(), 64 * kHeadDim / 8);
  EXPECT_LT(*chunks.rbegin(), 64 * kHeadDim * 2);
  for (uint32_t row = 0; row < 64; row += 8) {
    for (uint32_t chunk = 0; chunk < kHeadDim / 8; ++chunk) {
      std::set<uint32_t> banks;
      for (uint32_t i = 0; i < 8; ++i) banks.insert(TileByte<kHeadDim>(row + i, chunk) % 128);
      EXPECT_EQ(banks.size(), 8u);
    }
  }
}
TEST(PrefillAttention, EightRowsOfATileLieInDifferentBanks) {
  ExpectSwizzle<32>();
  ExpectSwizzle<64>();
  ExpectSwizzle<128>();
  ExpectSwizzle<256>();
}

// Every chunk is copied once, and eight neighbouring threads write to different banks.
template <KvDType kDType, uint32_t kHeadDim>
void ExpectCopies() {
  using L = prefill::Layout<kDType, kHeadDim>;
  std::set<std::pair<uint32_t, uint32_t>> chunks;
  for (uint32_t i = 0; i < L::kCopies; ++i) {
    for (uint32_t thread = 0; thread < L::kThreads; ++thread) {
      chunks.emplace(L::CopyRow(thread) + i * L::kCopyRows, L::CopyColumn(thread));
    }
  }
  EXPECT_EQ(chunks.size(), L::kKeys * L::kColumns);
  EXPECT_EQ(chunks.rbegin()->first, L::kKeys - 1);
  for (uint32_t thread = 0; thread < L::kThreads; thread += 8) {
    std::set<uint32_t> banks;
    for (uint32_t i = thread; i < thread + 8; ++i) {
      banks.insert(prefill::TileByte<kHeadDim>(L::CopyRow(i), L::CopyColumn(i) * (L::kHasCodes ? 2 : 1)) %
                   128);
    }
    EXPECT_EQ(banks.size(), 8u) << kHeadDim;
  }
}
TEST(PrefillAttention, CopiesCoverATileAndMeetNoBankTwice) {
  ExpectCopies<KvDType::kBF16, 32>();
  ExpectCopies<KvDType::kBF16, 64>();
  ExpectCopies<KvDType::kBF16, 128>();
  ExpectCopies<KvDType::kBF16, 256>();
  ExpectCopies<KvDType::kInt8, 32>();
  ExpectCopies<KvDType::kInt8, 64>();
  ExpectCopies<KvDType::kInt8, 128>();
  ExpectCopies<KvDType::kInt8, 256>();
  ExpectCopies<KvDType::kFp8, 128>();
}

TEST(PrefillAttention, RunsCoverEveryTokenOnceAndThoseThatReadMostComeFirst) {
  const std::vector<PrefillChunk> chunks = {{0, 1, 7}, {1, 300, 0}, {301, 128, 1000}, {429, 129, 64}};
  const auto runs = PrefillRuns(chunks);
  ASSERT_EQ(runs.size(), 1u + 3 + 1 + 2);
  std::vector<int> seen(558);
  uint32_t before = UINT32_MAX;
  for (const GpuQueryRun& run : runs) {
    ASSERT_GE(run.count, 1u);
    ASSERT_LE(run.count, kGpuQueryTile);
    for (uint32_t t = run.first; t < run.first + run.count; ++t) ++seen[t];
    const auto of =
        std::find_if(chunks.rbegin(), chunks.rend(), [&](const auto& c) { return c.first <= run.first; });
    EXPECT_LE(run.first + run.count, of->first + of->count);
    const uint32_t last = of->position + run.first + run.count - 1 - of->first;
    EXPECT_LE(last, before);
    before = last;
  }
  EXPECT_EQ(seen, std::vector<int>(558, 1));
}

// A run in the middle of a prompt reads a window and its own queries, however far it is; the first read less.
TEST(PrefillAttention, WithAWindowRunsThatReadMostComeFirst) {
  const std::vector<PrefillChunk> chunks = {{0, 300, 0}, {300, 128, 5000}, {428, 40, 9000}};
  const auto firsts = [&](uint32_t window) {
    std::vector<uint32_t> out;
    for (const GpuQueryRun& run : PrefillRuns(chunks, window)) out.push_back(run.first);
    return out;
  };
  EXPECT_EQ(firsts(0), (std::vector<uint32_t>{428, 300, 256, 128, 0}));
  EXPECT_EQ(firsts(64), (std::vector<uint32_t>{128, 300, 0, 256, 428}));   // 191, 191, 128, 107, 103
  EXPECT_EQ(firsts(200), (std::vector<uint32_t>{300, 128, 256, 428, 0}));  // 327, 256, 243, 239, 128
  EXPECT_EQ(firsts(UINT32_MAX), firsts(0));
}

TEST(PrefillAttention, MatchesTheReference) {
  uint64_t seed = 0;
  for (const uint32_t head_dim : {32u, 64u, 128u, 256u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const auto& sequences : std::vector<std::vector<PrefillShape::Sequence>>{
               {{0, 1}},
               {{0, 100}},
               {{5, 33}, {0, 7}, {63, 2}},
               {{300, 70}, {64, 64}},
           }) {
        const PrefillShape shape{.dtype = dtype,
                                 .heads = 2,
                                 .kv_heads = static_cast<uint32_t>(1 + seed % 2),
                                 .head_dim = head_dim,
                                 .log2_block_tokens = static_cast<uint32_t>(4 + seed % 4),
                                 .sequences = sequences,
                                 .seed = seed};
        SCOPED_TRACE(testing::Message()
                     << KvDTypeName(dtype) << ", head_dim " << head_dim << ", seed " << seed);
        PrefillBatch batch(shape);
        ExpectReference(batch, Attend(batch, seed++));
      }
    }
  }
}

TEST(PrefillAttention, MatchesTheReferenceOfSeveralRuns) {
  PrefillBatch batch({.heads = 4, .kv_heads = 2, .head_dim = 64, .sequences = {{5, 260}, {130, 20}}});
  EXPECT_EQ(batch.runs.size(), 4u);
  ExpectReference(batch, Attend(batch, /*seed=*/3));
}

// Items of one tile and of several, groups without a query and without a last tile; more items than blocks,
// and fewer.
TEST(PrefillAttention, MatchesTheReferenceOnHopper) {
  uint64_t seed = 0;
  for (const auto& sequences : std::vector<std::vector<PrefillShape::Sequence>>{
           {{0, 1}},
           {{0, 128}, {127, 2}},
           {{100, 100}, {5, 33}, {0, 65}, {63, 2}},
           {{192, 128}, {300, 70}},
       }) {
    for (const uint32_t head_dim : {64u, 128u}) {
      PrefillBatch batch({.heads = 4,
                          .kv_heads = static_cast<uint32_t>(1 + seed % 2),
                          .head_dim = head_dim,
                          .log2_block_tokens = static_cast<uint32_t>(4 + seed % 4),
                          .sequences = sequences,
                          .seed = seed});
      const auto blocks = static_cast<uint32_t>(1 + seed % 5);
      SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << ", seed " << seed);
      if (head_dim == 64) {
        ExpectReference(batch, AttendHopper<64, 128>(batch, seed, blocks));
      } else {
        ExpectReference(batch, AttendHopper<128, 128>(batch, seed, blocks));
      }
      ++seed;
    }
  }
}

// Windows that end within a tile, at its end and behind it, of which a run sees one tile, several, or all;
// queries that see nothing of the first tile of their run, or of the first two.
TEST(PrefillAttention, MatchesTheReferenceInAWindow) {
  uint64_t seed = 0;
  for (const Kernel& kernel : kKernels) {
    for (const KvDType dtype : kernel.dtypes) {
      for (const Limits& limits :
           LimitsOf(kernel, dtype, {{1}, {65}, {200}}, {{16}, {63}, {64}, {129}, {1000}, {UINT32_MAX}})) {
        SCOPED_TRACE(testing::Message()
                     << kernel.name << ", " << KvDTypeName(dtype) << ", " << limits << ", seed " << seed);
        PrefillBatch batch({.dtype = dtype,
                            .heads = 2,
                            .kv_heads = static_cast<uint32_t>(1 + seed % 2),
                            .head_dim = kernel.head_dim,
                            .log2_block_tokens = static_cast<uint32_t>(4 + seed % 4),
                            .sequences = {{301, 128}, {0, 70}, {63, 3}},
                            .window = limits.window,
                            .seed = seed});
        ExpectReference(batch, kernel.attend(batch, seed++));
      }
    }
  }
}

// Scores of up to 100 and caps below that, alone and with a window.
TEST(PrefillAttention, MatchesTheReferenceWithACap) {
  uint64_t seed = 0;
  for (const Kernel& kernel : kKernels) {
    for (const KvDType dtype : kernel.dtypes) {
      for (const Limits& limits :
           LimitsOf(kernel, dtype, {{0, 30}, {50, 5}}, {{0, 1}, {0, 64}, {50, 1}, {50, 64}})) {
        SCOPED_TRACE(testing::Message()
                     << kernel.name << ", " << KvDTypeName(dtype) << ", " << limits << ", seed " << seed);
        PrefillBatch batch({.dtype = dtype,
                            .head_dim = kernel.head_dim,
                            .sequences = {{100, 90}, {0, 33}},
                            .magnitude = 2,
                            .growth = 0.05f,
                            .window = limits.window,
                            .softcap = limits.softcap,
                            .seed = seed});
        ExpectReference(batch, kernel.attend(batch, seed++));
      }
    }
  }
}

// The other instantiations: those of the largest heads, and the largest of Hopper.
TEST(PrefillAttention, MatchesTheReferenceOfLargeHeadsWithAWindowAndACap) {
  uint64_t seed = 0;
  for (const uint32_t head_dim : {64u, 128u, 256u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      PrefillBatch batch({.dtype = dtype,
                          .heads = 2,
                          .head_dim = head_dim,
                          .sequences = {{200, 70}, {0, 5}},
                          .window = 100,
                          .softcap = 2,
                          .seed = seed});
      SCOPED_TRACE(testing::Message()
                   << KvDTypeName(dtype) << ", head_dim " << head_dim << ", seed " << seed);
      ExpectReference(batch, Attend(batch, seed++));
    }
  }
  PrefillBatch batch(
      {.heads = 2, .head_dim = 128, .sequences = {{300, 128}, {0, 5}}, .window = 70, .softcap = 2});
  ExpectReference(batch, AttendHopper<128, 128>(batch, seed));
}

// Of 32 positions, as heads of 256 have them: windows that end where a tile does, and one further.
TEST(PrefillAttention, MatchesTheReferenceInAWindowOfSmallTiles) {
  for (const uint32_t window : {31u, 32u, 33u, 64u}) {
    SCOPED_TRACE(testing::Message() << "window " << window);
    PrefillBatch batch(
        {.heads = 1, .head_dim = 256, .sequences = {{109, 60}, {31, 3}}, .window = window, .seed = window});
    ExpectReference(batch, Attend(batch, /*seed=*/window));
  }
}

// Groups pass over tiles before their window and behind it, while the other one multiplies.
TEST(PrefillAttention, ManyItemsWithAWindowMatchTheReferenceInEverySchedule) {
  PrefillBatch batch({.heads = 2,
                      .sequences = {{319, 128}, {0, 1}, {250, 65}, {1000, 64}, {128, 128}, {60, 5}},
                      .window = 66});
  for (uint64_t seed = 0; seed < 8; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    ExpectReference(batch, AttendHopper<64, 128>(batch, seed, /*blocks=*/1));
    ExpectReference(batch, AttendHopper<64, 64>(batch, seed, /*blocks=*/1));
  }
}

// Those that copy are in the next item while the groups are in the one before.
TEST(PrefillAttention, ManyShortItemsOfABlockMatchTheReferenceInEverySchedule) {
  PrefillBatch batch(
      {.heads = 2, .sequences = {{0, 70}, {0, 1}, {0, 128}, {3, 65}, {100, 40}, {0, 64}, {60, 5}}});
  for (uint64_t seed = 0; seed < 8; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    ExpectReference(batch, AttendHopper<64, 128>(batch, seed, /*blocks=*/1));
  }
}

// Every item is taken by one block, and none has more than a twentieth above the average of the tiles.
TEST(PrefillAttention, BlocksShareItemsEvenly) {
  constexpr uint32_t kHeads = 32, kBlocks = 132;
  const struct {
    const char* name;
    std::vector<PrefillChunk> chunks;
  } cases[] = {
      {"2,048", {{0, 2048}}},
      {"8,192", {{0, 8192}}},
      {"8 x 256",
       {{0, 256}, {256, 256}, {512, 256}, {768, 256}, {1024, 256}, {1280, 256}, {1536, 256}, {1792, 256}}}};
  for (const auto& [name, chunks] : cases) {
    SCOPED_TRACE(name);
    std::vector<uint32_t> of_run;
    for (const GpuQueryRun& run : PrefillRuns(chunks)) {
      const auto of =
          std::find_if(chunks.rbegin(), chunks.rend(), [&](auto& c) { return c.first <= run.first; });
      of_run.push_back((run.first - of->first + run.count + 127) / 128);
    }
    std::vector<uint32_t> tiles(kBlocks);
    std::vector<int> taken(kHeads * of_run.size());
    simt::RunBody({kBlocks, 1, 1}, 32, 0, [&] {
      if (threadIdx.x != 0) return;
      for (uint32_t round = 0;; ++round) {
        const uint32_t item = hopper_prefill::ItemNumber(round);
        if (item >= taken.size()) return;
        ++taken[item];
        tiles[blockIdx.x] += of_run[item / kHeads];
      }
    });
    EXPECT_EQ(taken, std::vector<int>(taken.size(), 1));
    const double average = std::accumulate(tiles.begin(), tiles.end(), 0.0) / kBlocks;
    EXPECT_LT(*std::max_element(tiles.begin(), tiles.end()), 1.05 * average);
  }
}

// Scores of up to 100, and larger with every tile: references move often.
TEST(PrefillAttention, TakesScoresThatGrow) {
  for (const Kernel& kernel : kKernels) {
    SCOPED_TRACE(kernel.name);
    PrefillBatch batch(
        {.head_dim = kernel.head_dim, .sequences = {{200, 90}}, .magnitude = 2, .growth = 0.05f});
    ExpectReference(batch, kernel.attend(batch, /*seed=*/4));
  }
}

// Tiles begin at the same positions whatever the run, and what is masked adds nothing.
void ExpectSameBitsOfEveryCut(const Kernel& kernel, const PrefillShape& shape) {
  PrefillBatch batch(shape);
  const auto expected = kernel.attend(batch, /*seed=*/0);
  ExpectFinite(expected);
  for (const auto& runs : std::vector<std::vector<GpuQueryRun>>{{{0, 128}, {128, 40}},
                                                                {{0, 1}, {1, 127}, {128, 33}, {161, 7}},
                                                                {{150, 18}, {20, 108}, {128, 22}, {0, 20}}}) {
    batch.runs = runs;
    EXPECT_EQ(kernel.attend(batch, /*seed=*/runs.size()), expected);
  }
  batch.runs = {{5, 20}};
  auto alone = kernel.attend(batch, /*seed=*/9);
  for (size_t i = 0; i < alone.size(); ++i) {
    const size_t token = i / batch.width();
    EXPECT_EQ(alone[i], token >= 5 && token < 25 ? expected[i] : 0xffff);
  }
}
TEST(PrefillAttention, ATokensBitsDependNeitherOnTheCutNorOnTheBatchNorOnTheSchedule) {
  for (const Kernel& kernel : kKernels) {
    for (const KvDType dtype : kernel.dtypes) {
      for (const Limits& limits : LimitsOf(kernel, dtype, {{0, 0}, {100, 3}}, {{1}, {65}})) {
        SCOPED_TRACE(testing::Message() << kernel.name << ", " << KvDTypeName(dtype) << ", " << limits);
        ExpectSameBitsOfEveryCut(kernel, {.dtype = dtype,
                                          .heads = 1,
                                          .head_dim = kernel.head_dim,
                                          .sequences = {{37, 128}, {0, 40}},
                                          .growth = 0.02f,
                                          .window = limits.window,
                                          .softcap = limits.softcap});
      }
    }
  }
}

// Both instantiations compute the same.
TEST(PrefillAttention, AWindowOfAllPositionsHasTheBitsOfNone) {
  for (const Kernel& kernel : kKernels) {
    SCOPED_TRACE(kernel.name);
    PrefillShape shape{.head_dim = kernel.head_dim, .sequences = {{60, 80}}, .growth = 0.02f};
    PrefillBatch batch(shape);
    const auto expected = kernel.attend(batch, /*seed=*/0);
    for (const uint32_t window : {140u, 1u << 31, UINT32_MAX}) {
      shape.window = window;
      PrefillBatch same(shape);
      EXPECT_EQ(kernel.attend(same, /*seed=*/1), expected) << window;
    }
  }
}

// A key or value of the first sequence's head 1 becomes NaN: element 3, or of int8 all.
void Break(PrefillBatch& batch, bool is_key, uint32_t position) {
  const GpuAttentionArgs args = batch.Args();
  const uint64_t row = KvRow(args.batch, 0, /*kv_head=*/1, position);
  if (args.kv.dtype == KvDType::kInt8) {
    (is_key ? batch.key_scales : batch.value_scales)[row] = std::nanf("");
  } else {
    const size_t bytes = KvElementBytes(args.kv.dtype);
    std::fill_n(&(is_key ? batch.keys : batch.values)[(row * args.batch.head_dim + 3) * bytes], bytes,
                std::byte{0xff});
  }
}

// A broken activation must reach the sampler, which reports it, and must not reach those who do not see it:
// their keys and values in later layers may be another request's, too.
void ExpectNaNsReachWhoSeesThem(const Kernel& kernel, KvDType dtype, uint32_t window) {
  constexpr uint32_t kPosition = 150, kCount = 100;
  const uint32_t head_dim = kernel.head_dim;
  PrefillBatch batch({.dtype = dtype,
                      .heads = 2,
                      .kv_heads = 2,
                      .head_dim = head_dim,
                      .sequences = {{kPosition, kCount}},
                      .window = window});
  const auto good = kernel.attend(batch, /*seed=*/0);
  ExpectFinite(good);
  for (const bool is_key : {true, false}) {
    for (const std::vector<uint32_t>& bad :
         std::vector<std::vector<uint32_t>>{{149}, {191}, {249}, {100}, {100, 191}}) {
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", window " << window
                                      << (is_key ? ", key " : ", value ") << bad[0]);
      PrefillBatch broken = batch;
      for (const uint32_t position : bad) {
        const bool is_kept = window == 0 || position + window > kPosition;  // else its block is no one's
        if (is_kept) Break(broken, is_key, position);
      }
      const auto out = kernel.attend(broken, /*seed=*/bad[0]);
      for (size_t i = 0; i < out.size(); ++i) {
        const size_t position = kPosition + i / batch.width(), head = i / head_dim % 2;
        const bool sees = std::any_of(bad.begin(), bad.end(), [&](uint32_t at) {
          return at <= position && (window == 0 || position - at < window);
        });
        if (head == 0 || !sees) {
          ASSERT_EQ(out[i], good[i]) << position;
        } else if (is_key || i % head_dim == 3 || dtype == KvDType::kInt8) {
          ASSERT_TRUE(std::isnan(FloatFromBF16(out[i]))) << position;
        }
      }
    }
  }
}
TEST(PrefillAttention, WhatIsNaNReachesThoseWhoSeeItOnly) {
  for (const Kernel& kernel : kKernels) {
    SCOPED_TRACE(kernel.name);
    for (const KvDType dtype : kernel.dtypes) {
      for (const Limits& limits : LimitsOf(kernel, dtype, {{0}, {110}}, {{1}, {65}})) {
        ExpectNaNsReachWhoSeesThem(kernel, dtype, limits.window);
      }
    }
  }
}

}  // namespace
}  // namespace terrace
