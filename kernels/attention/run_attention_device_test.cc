#include "kernels/attention/run_attention_device.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "kernels/attention/run_attention_testing.h"

namespace terrace {
namespace {

// What no kernel writes is NaN.
std::vector<uint16_t> Attend(PrefillBatch& batch, uint64_t seed) {
  GpuAttentionArgs args = batch.Args();
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

std::vector<uint16_t> Decode(PrefillBatch& batch) {
  GpuAttentionArgs args = batch.Args();
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

// However a prompt is cut: a run of 128 tokens, then of the rest, or runs of few.
TEST(RunAttention, ATokensBitsDoNotDependOnItsRun) {
  PrefillBatch batch({.heads = 8, .kv_heads = 2, .head_dim = 32, .sequences = {{200, 150}}, .seed = 40});
  const std::vector<uint16_t> whole = Attend(batch, 1);
  batch.runs.clear();
  for (uint32_t first = 0; first < batch.tokens(); first += 7) {
    batch.runs.push_back({first, std::min(7u, batch.tokens() - first)});
  }
  ExpectSameBits(batch, Attend(batch, 2), whole);
  ExpectSameBits(batch, Decode(batch), whole);
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
