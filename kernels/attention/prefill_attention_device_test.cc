#include "kernels/attention/prefill_attention_device.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

#include "gtest/gtest.h"
#include "kernels/attention/hopper_prefill_device.h"
#include "kernels/attention/prefill_attention_testing.h"

namespace terrace {
namespace {

template <KvDType kDType, uint32_t kHeadDim>
void RunKernel(const GpuAttentionArgs& args, uint64_t seed) {
  simt::RunSeeded(seed, {args.heads, args.run_count, 1}, prefill::kThreads,
                  prefill::Layout<kDType, kHeadDim>::kBytes, PrefillAttentionKernel<kDType, kHeadDim>, args);
}

template <KvDType kDType>
void RunDType(const GpuAttentionArgs& args, uint64_t seed) {
  switch (args.batch.head_dim) {
    case 32:
      return RunKernel<kDType, 32>(args, seed);
    case 64:
      return RunKernel<kDType, 64>(args, seed);
    default:
      return RunKernel<kDType, 128>(args, seed);
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
  using L = hopper_prefill::Layout<kHeadDim, kKeys>;
  std::vector<uint16_t> out(batch.tokens() * batch.width(), 0xffff);
  GpuAttentionArgs args = batch.Args();
  args.out = out.data();
  simt::RunSeeded(seed, {blocks, 1, 1}, hopper_prefill::kThreads, L::kBytes, HopperPrefillKernel<L>, args);
  return out;
}

// What a rule is tested of: a kernel, and the smallest head_dim it has.
struct Kernel {
  const char* name;
  std::function<std::vector<uint16_t>(PrefillBatch& batch, uint64_t seed)> attend;
  uint32_t head_dim;
  std::vector<KvDType> dtypes;
};
const Kernel kKernels[] = {
    {"mma", Attend, 32, {KvDType::kBF16, KvDType::kF16, KvDType::kInt8, KvDType::kFp8}},
    {"Hopper",
     [](PrefillBatch& batch, uint64_t seed) { return AttendHopper<64, 128>(batch, seed); },
     64,
     {KvDType::kBF16}},
    {"Hopper, 64 keys",
     [](PrefillBatch& batch, uint64_t seed) { return AttendHopper<64, 64>(batch, seed); },
     64,
     {KvDType::kBF16}},
};

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
}

// Every chunk is copied once, and eight neighbouring threads write to different banks.
template <KvDType kDType, uint32_t kHeadDim>
void ExpectCopies() {
  using L = prefill::Layout<kDType, kHeadDim>;
  std::set<std::pair<uint32_t, uint32_t>> chunks;
  for (uint32_t i = 0; i < L::kCopies; ++i) {
    for (uint32_t thread = 0; thread < prefill::kThreads; ++thread) {
      chunks.emplace(L::CopyRow(thread) + i * L::kCopyRows, L::CopyColumn(thread));
    }
  }
  EXPECT_EQ(chunks.size(), prefill::kKeys * L::kColumns);
  EXPECT_EQ(chunks.rbegin()->first, prefill::kKeys - 1);
  for (uint32_t thread = 0; thread < prefill::kThreads; thread += 8) {
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
  ExpectCopies<KvDType::kInt8, 32>();
  ExpectCopies<KvDType::kInt8, 64>();
  ExpectCopies<KvDType::kInt8, 128>();
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

TEST(PrefillAttention, MatchesTheReference) {
  uint64_t seed = 0;
  for (const uint32_t head_dim : {32u, 64u, 128u}) {
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
TEST(PrefillAttention, ATokensBitsDependNeitherOnTheCutNorOnTheBatchNorOnTheSchedule) {
  for (const auto& [name, attend, head_dim, dtypes] : kKernels) {
    for (const KvDType dtype : dtypes) {
      SCOPED_TRACE(testing::Message() << name << ", " << KvDTypeName(dtype));
      PrefillBatch batch({.dtype = dtype,
                          .heads = 1,
                          .head_dim = head_dim,
                          .sequences = {{37, 128}, {0, 40}},
                          .growth = 0.02f});
      const auto expected = attend(batch, /*seed=*/0);
      for (const auto& runs :
           std::vector<std::vector<GpuQueryRun>>{{{0, 128}, {128, 40}},
                                                 {{0, 1}, {1, 127}, {128, 33}, {161, 7}},
                                                 {{150, 18}, {20, 108}, {128, 22}, {0, 20}}}) {
        batch.runs = runs;
        EXPECT_EQ(attend(batch, /*seed=*/runs.size()), expected);
      }
      batch.runs = {{5, 20}};
      auto alone = attend(batch, /*seed=*/9);
      for (size_t i = 0; i < alone.size(); ++i) {
        const size_t token = i / batch.width();
        EXPECT_EQ(alone[i], token >= 5 && token < 25 ? expected[i] : 0xffff);
      }
    }
  }
}

// A broken activation must reach the sampler, which reports it, and must not reach the positions before it:
// their keys and values in later layers may be another request's, too.
void ExpectNaNsStayBehind(const Kernel& kernel, KvDType dtype) {
  constexpr uint32_t kPosition = 50, kCount = 100;
  const uint32_t head_dim = kernel.head_dim;
  PrefillBatch batch(
      {.dtype = dtype, .heads = 2, .kv_heads = 2, .head_dim = head_dim, .sequences = {{kPosition, kCount}}});
  const auto good = kernel.attend(batch, /*seed=*/0);
  for (const bool is_key : {true, false}) {
    for (const uint32_t bad : {49u, 63u, 70u, 149u}) {
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << (is_key ? " key " : " value ") << bad);
      PrefillBatch broken = batch;
      const uint64_t row = KvRow(broken.Args().batch, 0, /*kv_head=*/1, bad);
      auto& data = is_key ? broken.keys : broken.values;
      if (dtype == KvDType::kInt8) {
        (is_key ? broken.key_scales : broken.value_scales)[row] = std::nanf("");
      } else {
        const size_t bytes = KvElementBytes(dtype);
        std::fill_n(&data[(row * head_dim + 3) * bytes], bytes, std::byte{0xff});
      }
      const auto out = kernel.attend(broken, /*seed=*/bad);
      for (size_t i = 0; i < out.size(); ++i) {
        const size_t position = kPosition + i / batch.width(), head = i / head_dim % 2;
        if (head == 0 || position < bad) {
          ASSERT_EQ(out[i], good[i]) << position;
        } else if (is_key || i % head_dim == 3 || dtype == KvDType::kInt8) {
          ASSERT_TRUE(std::isnan(FloatFromBF16(out[i]))) << position;
        }
      }
    }
  }
}
TEST(PrefillAttention, WhatIsNaNReachesItsOwnAndLaterPositionsOnly) {
  for (const Kernel& kernel : kKernels) {
    SCOPED_TRACE(kernel.name);
    for (const KvDType dtype : kernel.dtypes) ExpectNaNsStayBehind(kernel, dtype);
  }
}

}  // namespace
}  // namespace terrace
