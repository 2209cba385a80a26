#include "kernels/attention/run_attention_device.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "kernels/attention/run_attention_testing.h"

namespace terrace {
namespace {

// What no kernel writes is NaN.
std::vector<uint16_t> Attend(PrefillBatch& batch, uint64_t seed, const RunLimits& limits = {}) {
  GpuAttentionArgs args = batch.Args();
  args.window = limits.window;
  args.softcap = limits.softcap;
  std::vector<uint16_t> out(batch.tokens() * batch.width(), 0xffff);
  args.out = out.data();
  run_attention::LaunchRunAttention(
      args, [&](auto kernel, uint32_t blocks, uint32_t threads, size_t shared_bytes, uint32_t heads) {
        simt::RunSeeded(seed, {blocks, args.batch.kv_heads, args.run_count}, threads, shared_bytes, kernel,
                        args, heads);
        return 0;
      });
  return out;
}

std::vector<uint16_t> Decode(PrefillBatch& batch, const RunLimits& limits = {}) {
  GpuAttentionArgs args = batch.Args();
  args.window = limits.window;
  args.softcap = limits.softcap;
  DecodeAll(args, batch);
  std::vector<uint16_t> out(batch.tokens() * batch.width(), 0xffff);
  std::vector<float> partials(
      GpuAttentionPartialFloats(args.count, args.heads, args.batch.head_dim, args.most_spans), std::nanf(""));
  std::vector<uint32_t> arrived(args.count * args.batch.kv_heads, 0);
  args.out = out.data();
  args.partials = partials.data();
  args.arrived = arrived.data();
  decode_attention::LaunchDecodeAttention(args, [&](auto kernel, uint32_t parts, uint32_t threads,
                                                    size_t shared_bytes, uint32_t log2_unit, uint32_t heads) {
    simt::Run({parts, args.batch.kv_heads, args.count}, threads, shared_bytes, kernel, args, log2_unit,
              heads);
    return 0;
  });
  return out;
}

TEST(RunAttention, HasTheBitsOfDecode) {
  uint64_t seed = 1;
  for (const KvDType dtype : kEveryGpuKvDType) {
    for (const auto& [group, head_dim] :
         {std::pair{4u, 32u}, {1u, 64u}, {7u, 32u}, {16u, 32u}, {4u, 128u}, {9u, 64u}}) {
      SCOPED_TRACE(testing::Message()
                   << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim << ", seed " << seed);
      PrefillBatch batch(RunShape(dtype, group, head_dim, seed));
      ExpectSameBits(batch, Attend(batch, seed), Decode(batch));
      if (HasFatalFailure()) return;
      ++seed;
    }
  }
}

// What is before the windows of all tokens of a sequence is gone.
TEST(RunAttention, HasTheBitsOfDecodeWithWindowsAndCaps) {
  constexpr std::pair<uint32_t, uint32_t> kShapes[] = {{4, 32},  {1, 64},  {7, 32},
                                                       {16, 32}, {4, 128}, {9, 64}};
  uint64_t seed = 60;
  for (const RunLimits& limits : kRunLimits) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      const auto [group, head_dim] = kShapes[seed % std::size(kShapes)];
      SCOPED_TRACE(testing::Message()
                   << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim << ", window "
                   << limits.window << ", cap " << limits.softcap << ", seed " << seed);
      PrefillBatch batch(RunShape(dtype, group, head_dim, seed));
      LeaveBehind(batch, limits.window);
      const std::vector<uint16_t> want = Decode(batch, limits);
      EXPECT_FALSE(std::ranges::any_of(want, [](uint16_t bits) { return std::isnan(FloatFromBF16(bits)); }));
      ExpectSameBits(batch, Attend(batch, seed, limits), want);
      if (HasFatalFailure()) return;
      ++seed;
    }
  }
}

TEST(RunAttention, SumsAreInTheOrderOfDecode) {
  PrefillBatch batch({.heads = 4, .head_dim = 64, .sequences = {{2557, 3}}});  // the last of 10 spans
  CancelSpans(batch);
  for (const uint32_t window : {0u, 2048u, 1024u}) {  // from groups' first spans on, and from others
    SCOPED_TRACE(window);
    ExpectSameBits(batch, Attend(batch, 5, {.window = window}), Decode(batch, {.window = window}));
  }
}

// A NaN reaches the tokens whose windows it is in, as when they are decoded.
TEST(RunAttention, BrokenValuesReachOnlyWindowsThatHaveThem) {
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8}) {
    SCOPED_TRACE(KvDTypeName(dtype));
    const RunLimits limits{.window = 6};
    PrefillBatch batch(RunShape(dtype, 4, 32, 50));
    BreakValue(batch, 1, 256);
    const std::vector<uint16_t> want = Decode(batch, limits);
    for (size_t i = 0; i < want.size(); ++i) {
      const size_t token = i / batch.width();
      const uint32_t position = batch.positions[token];
      const bool may_be = batch.sequences[token] == 1 && position >= 256 && position < 256 + 6;
      ASSERT_TRUE(may_be || !std::isnan(FloatFromBF16(want[i]))) << token;
    }
    ExpectSameBits(batch, Attend(batch, 4, limits), want);
    EXPECT_TRUE(std::ranges::any_of(want, [](uint16_t bits) { return std::isnan(FloatFromBF16(bits)); }));
  }
}

// However a prompt is cut: a run of 128 tokens, then of the rest, or runs of few.
TEST(RunAttention, ATokensBitsDoNotDependOnItsRun) {
  for (const RunLimits& limits : {RunLimits{}, {.window = 3}, {.window = 90, .softcap = 10}}) {
    SCOPED_TRACE(limits.window);
    PrefillBatch batch({.heads = 8, .kv_heads = 2, .head_dim = 32, .sequences = {{200, 150}}, .seed = 40});
    LeaveBehind(batch, limits.window);
    const std::vector<uint16_t> whole = Attend(batch, 1, limits);
    batch.runs.clear();
    for (uint32_t first = 0; first < batch.tokens(); first += 7) {
      batch.runs.push_back({first, std::min(7u, batch.tokens() - first)});
    }
    ExpectSameBits(batch, Attend(batch, 2, limits), whole);
    ExpectSameBits(batch, Decode(batch, limits), whole);
  }
}

// What a later token of the block left broken is not seen by those before it, as when it is decoded.
TEST(RunAttention, BrokenValuesReachOnlyTheirOwnAndLaterTokens) {
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8}) {
    PrefillBatch batch(RunShape(dtype, 4, 32, 50));
    BreakValue(batch, 0, 5);
    BreakValue(batch, 1, 256);
    BreakValue(batch, 3, 1033);
    const std::vector<uint16_t> want = Decode(batch);
    SCOPED_TRACE(KvDTypeName(dtype));
    ExpectSameBits(batch, Attend(batch, 3), want);
    EXPECT_TRUE(std::ranges::any_of(want, [](uint16_t bits) { return std::isnan(FloatFromBF16(bits)); }));
  }
}

}  // namespace
}  // namespace terrace
