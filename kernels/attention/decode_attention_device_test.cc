#include "kernels/attention/decode_attention_device.h"

#include <algorithm>
#include <span>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/attention/decode_attention_testing.h"

namespace terrace {
namespace {

using decode_attention::DecodeGeometry;

struct Options {
  uint64_t seed = 0;
  uint32_t first = 0, count = UINT32_MAX;    // tokens
  uint32_t spare_spans = 0;                  // of most_spans
  const DecodeGeometry* geometry = nullptr;  // other than that of the batch
};

// The kernel's output; what it does not write is NaN.
std::vector<uint16_t> Attend(const DecodeBatch& batch, GpuAttentionArgs args, const Options& options) {
  args.first = options.first;
  args.count = std::min(options.count, args.count);
  args.most_spans += options.spare_spans;
  std::vector<uint16_t> out(batch.tokens() * batch.width(), 0xffff);
  std::vector<float> partials(
      GpuAttentionPartialFloats(args.count, args.heads, args.batch.head_dim, args.most_spans), std::nanf(""));
  std::vector<uint32_t> arrived(args.count * args.batch.kv_heads, 0);
  args.out = out.data();
  args.partials = partials.data();
  args.arrived = arrived.data();
  decode_attention::LaunchDecodeAttention(args, [&](auto kernel, uint32_t parts, uint32_t threads,
                                                    size_t shared_bytes, uint32_t log2_unit, uint32_t heads) {
    if (options.geometry != nullptr) {
      parts = options.geometry->parts;
      log2_unit = options.geometry->log2_unit;
    }
    simt::RunSeeded(options.seed, {parts, args.batch.kv_heads, args.count}, threads, shared_bytes, kernel,
                    args, log2_unit, heads);
    return 0;
  });
  EXPECT_EQ(arrived, std::vector<uint32_t>(arrived.size(), 0));
  return out;
}
std::vector<uint16_t> Attend(DecodeBatch& batch, const Options& options = {}) {
  return Attend(batch, batch.Args(), options);
}

// By a kernel of its own.
void Rope(RopeDecodeBatch& batch, uint64_t seed) {
  const GpuRopeKvArgs args = batch.RopeArgs();
  LaunchRopeKv(args, {}, [&](uint32_t blocks, uint32_t threads, auto* kernel, const auto&... arguments) {
    simt::RunSeeded(seed, {args.batch.tokens, blocks}, threads, 0, kernel, arguments...);
  });
}

void ExpectReference(DecodeBatch& batch, const std::vector<uint16_t>& out) {
  const auto expected = batch.Reference();
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_NEAR(FloatFromBF16(out[i]), expected.out[i], expected.tolerance[i])
        << "position " << batch.positions[i / batch.width()] << ", element " << i % batch.width();
  }
}

constexpr uint32_t kEveryHeadDim[] = {32, 64, 128, 256};

// Around the edges of tiles, of blocks of the pool and of spans.
TEST(DecodeAttention, MatchesTheReference) {
  uint64_t seed = 0;
  for (const uint32_t head_dim : kEveryHeadDim) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const uint32_t group : {1u, 2u, 4u, 7u, 8u, 16u}) {
        if (group > GpuMostGroupHeads(head_dim)) continue;
        DecodeBatch batch({.dtype = dtype,
                           .heads = 2 * group,
                           .kv_heads = 2,
                           .head_dim = head_dim,
                           .log2_block_tokens = static_cast<uint32_t>(4 + seed % 3),
                           .positions = {0, 15, 16, 31, 129},
                           .seed = seed});
        SCOPED_TRACE(testing::Message()
                     << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim << ", seed " << seed);
        ExpectReference(batch, Attend(batch, {.seed = seed}));
        ++seed;
      }
    }
  }
}

TEST(DecodeAttention, MatchesTheReferenceOfSeveralSpans) {
  uint64_t seed = 100;
  for (const uint32_t head_dim : kEveryHeadDim) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const uint32_t group : {3u, 9u}) {
        if (group > GpuMostGroupHeads(head_dim)) continue;
        DecodeBatch batch({.dtype = dtype,
                           .heads = group,
                           .head_dim = head_dim,
                           .log2_block_tokens = static_cast<uint32_t>(4 + seed % 2),
                           .positions = {255, 700, 3, 256},
                           .seed = seed});
        SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim);
        ExpectReference(batch, Attend(batch, {.seed = seed++, .spare_spans = 2}));
      }
    }
  }
}

// Windows that begin anywhere in a tile, a block of the pool and a span; what is before them is gone. Caps
// that most scores are far below, and that they are at.
TEST(DecodeAttention, WindowsAndCapsMatchTheReference) {
  constexpr uint32_t kWindows[] = {0, 1, 2, 16, 17, 100, 256, 257, 600, 1024, 5000};
  constexpr float kCaps[] = {0, 30, 1};
  uint64_t seed = 300;
  for (const uint32_t head_dim : kEveryHeadDim) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const uint32_t group : {3u, 9u}) {
        if (group > GpuMostGroupHeads(head_dim)) continue;
        for (uint32_t i = 0; i < 3; ++i) {
          DecodeBatch batch({.dtype = dtype,
                             .heads = group,
                             .head_dim = head_dim,
                             .log2_block_tokens = static_cast<uint32_t>(4 + seed % 3),
                             .positions = {0, 17, 255, 256, 300, 1300},
                             .seed = seed,
                             .window = kWindows[seed % std::size(kWindows)],
                             .softcap = kCaps[(seed + i) % std::size(kCaps)]});
          SCOPED_TRACE(testing::Message()
                       << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim << ", window "
                       << batch.Args().window << ", cap " << batch.Args().softcap << ", seed " << seed);
          ExpectReference(batch,
                          Attend(batch, {.seed = seed, .spare_spans = static_cast<uint32_t>(seed % 2)}));
          if (HasFatalFailure()) return;
          ++seed;
        }
      }
    }
  }
}

TEST(DecodeAttention, AWindowOfTheWholeContextChangesNoBit) {
  for (const KvDType dtype : kEveryGpuKvDType) {
    for (const auto& [head_dim, last] : {std::pair{32u, 2570u}, {256u, 300u}}) {
      DecodeShape shape{.dtype = dtype, .head_dim = head_dim, .positions = {40, 299, last}};
      DecodeBatch all(shape);
      shape.window = last + 1;
      DecodeBatch limited(shape);
      EXPECT_EQ(Attend(limited), Attend(all)) << KvDTypeName(dtype) << ", heads of " << head_dim;
    }
  }
}

// Scores of up to 100, and larger with every tile: what was added before must be scaled down again and again.
TEST(DecodeAttention, TakesScoresThatGrow) {
  for (const uint32_t head_dim : {32u, 256u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", heads of " << head_dim);
      DecodeBatch batch(
          {.dtype = dtype, .head_dim = head_dim, .positions = {100, 600}, .magnitude = 2, .growth = 0.03f});
      ExpectReference(batch, Attend(batch));
    }
  }
}

// In the batch or alone, whatever blocks hold it, however spans are shared out among blocks, whichever thread
// is first.
TEST(DecodeAttention, ATokensBitsDependOnItsPositionOnly) {
  const struct {
    KvDType dtype;
    uint32_t group, window, head_dim = 32;
    std::vector<uint32_t> positions = {40, 2570, 700};  // 1 span, 11 in 3 groups, 3
  } cases[] = {{KvDType::kBF16, 2, 0},
               {KvDType::kBF16, 9, 0},
               {KvDType::kInt8, 2, 0},
               {KvDType::kInt8, 9, 0},
               {KvDType::kFp8, 2, 0},
               {KvDType::kFp8, 9, 0},
               {KvDType::kBF16, 2, 2000},  // the longest from the third span of a group, which has two
               {KvDType::kInt8, 9, 1400},  // from the last
               {KvDType::kFp8, 2, 1300},   // from the first of the second group
               {KvDType::kF16, 9, 20},     // one span
               // 1 span and 5 in 2 groups, with a window 3 of these
               {KvDType::kBF16, 2, 0, 256, {40, 1200}},
               {KvDType::kInt8, 2, 600, 256, {40, 1200}}};
  for (const auto& [dtype, group, window, head_dim, positions] : cases) {
    SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim
                                    << ", window " << window);
    DecodeBatch batch({.dtype = dtype,
                       .heads = group,
                       .head_dim = head_dim,
                       .positions = positions,
                       .growth = 0.001f,
                       .window = window});
    const auto expected = Attend(batch, {.seed = 1});
    ExpectReference(batch, expected);
    for (const DecodeGeometry geometry : {DecodeGeometry{.log2_unit = 0, .parts = 1},
                                          {.log2_unit = 0, .parts = 4},
                                          {.log2_unit = 2, .parts = 1},
                                          {.log2_unit = 2, .parts = 2},
                                          {.log2_unit = 2, .parts = 5}}) {
      EXPECT_EQ(Attend(batch, {.seed = 2, .spare_spans = 9, .geometry = &geometry}), expected)
          << "units of " << (1 << geometry.log2_unit) << ", " << geometry.parts << " parts";
    }
    for (uint32_t t = 0; t < batch.tokens(); ++t) {
      const auto alone = Attend(batch, {.seed = 3, .first = t, .count = 1});
      for (size_t i = 0; i < alone.size(); ++i) {
        ASSERT_EQ(alone[i], i / batch.width() == t ? expected[i] : 0xffff) << t;
      }
    }
    batch.ReverseBlocks();
    EXPECT_EQ(Attend(batch), expected);
  }
}

TEST(DecodeAttention, SumsAreInOneOrderWhateverTheGeometry) {
  for (const auto& [heads, head_dim] : {std::pair{4u, 64u}, {1u, 256u}}) {
    DecodeBatch batch({.heads = heads, .head_dim = head_dim, .positions = {2559}});  // the last of 10 spans
    CancelSpans(batch);
    for (const uint32_t window : {0u, 2048u, 1024u}) {  // from spans 0, 2 and 6, of groups of 4
      GpuAttentionArgs args = batch.Args();
      args.window = window;
      const auto expected = Attend(batch, args, {.seed = 1});
      for (const DecodeGeometry geometry : {DecodeGeometry{.log2_unit = 0, .parts = 1},
                                            {.log2_unit = 0, .parts = 3},
                                            {.log2_unit = 2, .parts = 1},
                                            {.log2_unit = 2, .parts = 2}}) {
        EXPECT_EQ(Attend(batch, args, {.seed = 2, .geometry = &geometry}), expected)
            << "heads of " << head_dim << ", window " << window << ", units of " << (1 << geometry.log2_unit)
            << ", " << geometry.parts << " parts";
      }
    }
  }
}

// A broken activation must reach the sampler, which reports it; those behind the token's position are
// another's.
void ExpectNaNReachesItsToken(uint32_t head_dim, std::span<const KvDType> dtypes) {
  for (const KvDType dtype : dtypes) {
    const DecodeBatch batch(
        {.dtype = dtype, .heads = 4, .kv_heads = 2, .head_dim = head_dim, .positions = {300, 20}});
    DecodeBatch good = batch;
    const auto expected = Attend(good);
    for (const bool is_key : {true, false}) {
      for (const uint32_t bad : {0u, 257u, 300u, 301u}) {
        SCOPED_TRACE(testing::Message() << "heads of " << head_dim << ", " << KvDTypeName(dtype)
                                        << (is_key ? " key " : " value ") << bad);
        DecodeBatch broken = batch;
        const uint64_t row = KvRow(broken.Args().batch, 0, /*kv_head=*/1, bad);
        auto& data = is_key ? broken.keys : broken.values;
        if (dtype == KvDType::kInt8) {
          (is_key ? broken.key_scales : broken.value_scales)[row] = std::nanf("");
        } else {
          const size_t bytes = KvElementBytes(dtype);
          std::fill_n(&data[(row * head_dim + 3) * bytes], bytes, std::byte{0xff});
        }
        const auto out = Attend(broken);
        for (size_t i = 0; i < out.size(); ++i) {
          if (i >= batch.width() || i / (2 * head_dim) == 0 || bad > 300) {
            ASSERT_EQ(out[i], expected[i]) << i;
          } else if (is_key || i % head_dim == 3 || dtype == KvDType::kInt8) {
            ASSERT_TRUE(std::isnan(FloatFromBF16(out[i]))) << i;
          }
        }
      }
    }
  }
}
TEST(DecodeAttention, NaNUpToTheTokensPositionReachesIt) {
  ExpectNaNReachesItsToken(32, kEveryGpuKvDType);
  ExpectNaNReachesItsToken(256, {{KvDType::kBF16}});
}

TEST(DecodeAttention, EveryInt8CodeIsExact) {
  for (uint32_t code = 0; code < 256; ++code) {
    const uint32_t other = 255 - code;
    uint32_t pairs[2];
    decode_attention::Int8Codes::Pairs(code | other << 8 | other << 16 | code << 24, pairs[0], pairs[1]);
    for (uint32_t i = 0; i < 2; ++i) {
      const auto value = [](uint32_t of) {
        return decode_attention::Int8Rows::kStep * static_cast<float>(static_cast<int8_t>(of));
      };
      EXPECT_EQ(simt::BF16Low(pairs[i]), value(i == 0 ? code : other)) << code;
      EXPECT_EQ(simt::BF16High(pairs[i]), value(i == 0 ? other : code)) << code;
    }
  }
}

// Outputs and pool, to the bit: around the edges of tiles, blocks of the pool and spans.
TEST(DecodeAttention, WithRopeItIsWhatRopeAndDecodeAre) {
  uint64_t seed = 200;
  for (const uint32_t head_dim : {32u, 64u, 128u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const uint32_t group : {1u, 4u, 7u, 8u, 9u, 16u}) {
        const RopeDecodeBatch batch({.dtype = dtype,
                                     .heads = 2 * group,
                                     .kv_heads = 2,
                                     .head_dim = head_dim,
                                     .log2_block_tokens = static_cast<uint32_t>(4 + seed % 3),
                                     .positions = {0, 15, 16, 129, 255, 256, 391, 700},
                                     .seed = seed},
                                    /*neighbours=*/seed % 2 == 1);
        SCOPED_TRACE(testing::Message()
                     << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim << ", seed " << seed);
        RopeDecodeBatch apart = batch, fused = batch;
        Rope(apart, seed);
        const auto expected = Attend(apart, {.seed = seed});
        EXPECT_EQ(Attend(fused, fused.FusedArgs(), {.seed = seed + 1, .spare_spans = 1}), expected);
        fused.ExpectSamePool(apart);
        ++seed;
      }
    }
  }
}

TEST(DecodeAttention, EveryFp8CodeIsItsValue) {
  DecodeBatch batch = EveryFp8Code();
  ExpectEveryFp8Code(Attend(batch));
}

TEST(DecodeAttention, WithRopeBitsDoNotDependOnTheGeometry) {
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8}) {
    const RopeDecodeBatch batch(
        {.dtype = dtype, .heads = 6, .kv_heads = 2, .head_dim = 32, .positions = {40, 2570, 700}},
        /*neighbours=*/false);
    RopeDecodeBatch apart = batch;
    Rope(apart, 1);
    const auto expected = Attend(apart);
    ExpectReference(apart, expected);
    for (const DecodeGeometry geometry : {DecodeGeometry{.log2_unit = 0, .parts = 1},
                                          {.log2_unit = 0, .parts = 4},
                                          {.log2_unit = 2, .parts = 1},
                                          {.log2_unit = 2, .parts = 2},
                                          {.log2_unit = 2, .parts = 5}}) {
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", units of " << (1 << geometry.log2_unit)
                                      << ", " << geometry.parts << " parts");
      RopeDecodeBatch fused = batch;
      EXPECT_EQ(Attend(fused, fused.FusedArgs(), {.seed = 2, .spare_spans = 9, .geometry = &geometry}),
                expected);
      fused.ExpectSamePool(apart);
    }
  }
}

// Several tokens of a sequence, as a draft has them, in one step behind RoPE's own kernel; and one by one, as
// steps without a draft.
TEST(DecodeAttention, ADraftHasTheBitsOfItsTokensOneByOne) {
  for (const KvDType dtype : kEveryGpuKvDType) {
    SCOPED_TRACE(KvDTypeName(dtype));
    const RopeDecodeBatch batch({.dtype = dtype,
                                 .heads = 8,
                                 .kv_heads = 2,
                                 .head_dim = 64,
                                 .positions = {13, 252},  // across a tile, across a span
                                 .count = 6},
                                /*neighbours=*/true);
    RopeDecodeBatch together = batch, single = batch;
    Rope(together, 3);
    const auto expected = Attend(together, {.seed = 4});
    for (uint32_t t = 0; t < batch.tokens(); ++t) {
      const auto out = Attend(single, single.FusedArgs(), {.seed = 5 + t, .first = t, .count = 1});
      const auto begin = static_cast<ptrdiff_t>(t * batch.width());
      const auto end = begin + static_cast<ptrdiff_t>(batch.width());
      EXPECT_TRUE(std::equal(out.begin() + begin, out.begin() + end, expected.begin() + begin)) << t;
    }
    single.ExpectSamePool(together);
  }
}

TEST(DecodeAttention, BlocksAreOfGroupsOnceTheseFillAGpu) {
  const struct {
    uint32_t count, kv_heads, most_spans, log2_unit, parts;
  } cases[] = {
      {1, 8, 1, 0, 1},   {1, 8, 4, 0, 4},    {1, 8, 512, 0, 512}, {1, 8, 4096, 2, 512},  {64, 8, 4, 0, 4},
      {64, 8, 32, 2, 8}, {64, 8, 512, 2, 8}, {512, 8, 32, 2, 1},  {60000, 128, 1, 2, 1},
  };
  for (const auto& c : cases) {
    GpuAttentionArgs args;
    args.batch.kv_heads = c.kv_heads;
    args.count = c.count;
    args.most_spans = c.most_spans;
    const DecodeGeometry got = decode_attention::GeometryOf(args);
    EXPECT_EQ(got.log2_unit, c.log2_unit) << c.count << " x " << c.most_spans;
    EXPECT_EQ(got.parts, c.parts) << c.count << " x " << c.most_spans;
  }
}

TEST(DecodeAttention, BlocksAreOfWhatAWindowMayTouch) {
  const struct {
    uint32_t count, window, log2_unit, parts;
  } cases[] = {{1, 1, 0, 1},   {1, 2, 0, 2},      {1, 256, 0, 2},       {1, 257, 0, 2},
               {1, 258, 0, 3}, {1, 4096, 0, 17},  {1, 1 << 20, 0, 512}, {1, UINT32_MAX, 0, 512},
               {256, 1, 2, 1}, {256, 1024, 2, 2}, {128, 1026, 2, 3}};
  for (const auto& c : cases) {
    GpuAttentionArgs args;
    args.batch.kv_heads = 8;
    args.count = c.count;
    args.most_spans = 512;
    args.window = c.window;
    const DecodeGeometry got = decode_attention::GeometryOf(args);
    EXPECT_EQ(got.log2_unit, c.log2_unit) << c.count << " x " << c.window;
    EXPECT_EQ(got.parts, c.parts) << c.count << " x " << c.window;
  }
}

}  // namespace
}  // namespace terrace
