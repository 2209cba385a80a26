// Decode attention on a GPU against the reference, as decode_attention_device_test.cc does without one.
#include "kernels/attention/decode_attention_cuda.h"

#include <algorithm>
#include <cstdio>

#include "gtest/gtest.h"
#include "kernels/attention/decode_attention_testing.h"
#include "kernels/rope/rope_kv_cuda.h"
#include "tests/gpu/device_data.h"

namespace terrace {
namespace {

// A batch's arrays on the device, those of decode attention too.
class DeviceBatch : public DevicePrefillBatch {
 public:
  explicit DeviceBatch(DecodeBatch& batch, uint32_t spare_spans = 0)
      : DevicePrefillBatch(batch, batch.Args()),
        partials_(GpuAttentionPartialFloats(args_.count, args_.heads, args_.batch.head_dim,
                                            args_.most_spans + spare_spans)),
        arrived_(std::vector<uint32_t>(args_.count * args_.batch.kv_heads, 0)) {
    args_.most_spans += spare_spans;
    args_.partials = partials_.data();
    args_.arrived = arrived_.data();
  }

  GpuAttentionArgs& args() { return args_; }
  std::vector<uint32_t> arrived() const { return arrived_.Get(); }
  // What became of the pool.
  void GetPool(DecodeBatch& batch) const {
    batch.keys = keys_.Get();
    batch.values = values_.Get();
    batch.key_scales = key_scales_.Get();
    batch.value_scales = value_scales_.Get();
  }

 private:
  DeviceArray<float> partials_;  // NaNs
  DeviceArray<uint32_t> arrived_;
};

// Twice: what the first call leaves in `arrived` must serve the second.
std::vector<uint16_t> Attend(DecodeBatch& batch, uint32_t spare_spans = 0) {
  DeviceBatch device(batch, spare_spans);
  CUDA_MUST(DecodeAttentionCuda(device.args(), {}));
  const auto out = device.out();
  device.ClearOut();
  CUDA_MUST(DecodeAttentionCuda(device.args(), {.follows = true}));
  EXPECT_EQ(device.out(), out);
  EXPECT_EQ(device.arrived(), std::vector<uint32_t>(device.arrived().size(), 0));
  return out;
}

void ExpectReference(DecodeBatch& batch, const std::vector<uint16_t>& out) {
  const auto expected = batch.Reference();
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_NEAR(FloatFromBF16(out[i]), expected.out[i], expected.tolerance[i])
        << "position " << batch.positions[i / batch.width()] << ", element " << i % batch.width();
  }
}

TEST(DecodeAttentionGpu, MatchesTheReference) {
  uint64_t seed = 0;
  for (const uint32_t head_dim : {32u, 64u, 128u, 256u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const uint32_t group : {1u, 2u, 4u, 7u, 8u, 9u, 16u}) {
        if (group > GpuMostGroupHeads(head_dim)) continue;
        SCOPED_TRACE(testing::Message()
                     << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim << ", seed " << seed);
        DecodeBatch batch({.dtype = dtype,
                           .heads = 2 * group,
                           .kv_heads = 2,
                           .head_dim = head_dim,
                           .log2_block_tokens = static_cast<uint32_t>(4 + seed % 4),
                           .positions = {0, 15, 16, 255, 256, 700, 1500, 31, 2570},
                           .seed = seed});
        ExpectReference(batch, Attend(batch, /*spare_spans=*/seed % 3));
        ++seed;
      }
    }
  }
}

TEST(DecodeAttentionGpu, WindowsAndCapsMatchTheReference) {
  constexpr uint32_t kWindows[] = {0, 1, 2, 16, 17, 100, 256, 257, 600, 1024, 5000};
  constexpr float kCaps[] = {0, 30, 1};
  uint64_t seed = 300;
  for (const uint32_t head_dim : {32u, 64u, 128u, 256u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const uint32_t group : {1u, 4u, 7u, 8u, 9u, 16u}) {
        if (group > GpuMostGroupHeads(head_dim)) continue;
        DecodeBatch batch({.dtype = dtype,
                           .heads = 2 * group,
                           .kv_heads = 2,
                           .head_dim = head_dim,
                           .log2_block_tokens = static_cast<uint32_t>(4 + seed % 4),
                           .positions = {0, 17, 255, 256, 300, 700, 1500, 2570},
                           .seed = seed,
                           .window = kWindows[seed % std::size(kWindows)],
                           .softcap = kCaps[(seed + 1) % std::size(kCaps)]});
        SCOPED_TRACE(testing::Message()
                     << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim << ", window "
                     << batch.Args().window << ", cap " << batch.Args().softcap << ", seed " << seed);
        ExpectReference(batch, Attend(batch, /*spare_spans=*/seed % 3));
        ++seed;
      }
    }
  }
}

TEST(DecodeAttentionGpu, TakesScoresThatGrow) {
  for (const uint32_t head_dim : {128u, 256u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", heads of " << head_dim);
      DecodeBatch batch({.dtype = dtype, .head_dim = head_dim, .positions = {100, 600}, .growth = 0.01f});
      ExpectReference(batch, Attend(batch));
    }
  }
}

// Enough tokens for blocks of whole groups of spans; alone each is of single spans.
TEST(DecodeAttentionGpu, ATokensBitsDependOnItsPositionOnly) {
  for (const KvDType dtype : kEveryGpuKvDType) {
    for (const auto& [group, window] : {std::pair{4u, 0u}, {9u, 0u}, {4u, 1300u}, {9u, 3000u}}) {
      SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", " << group << " heads, window " << window);
      DecodeShape shape{.dtype = dtype, .heads = 8 * group, .kv_heads = 8, .head_dim = 32, .positions = {}};
      shape.window = window;
      for (uint32_t i = 0; i < 64; ++i) shape.positions.push_back(i * i * 2);
      DecodeBatch batch(shape);
      const auto expected = Attend(batch);
      EXPECT_EQ(Attend(batch, /*spare_spans=*/40), expected);
      DeviceBatch device(batch);
      for (const uint32_t t : {0u, 9u, 22u, 40u, 63u}) {
        device.args().first = t;
        device.args().count = 1;
        CUDA_MUST(DecodeAttentionCuda(device.args(), {}));
        const auto alone = device.out();
        const auto begin = static_cast<ptrdiff_t>(t * batch.width());
        const auto end = begin + static_cast<ptrdiff_t>(batch.width());
        EXPECT_TRUE(std::equal(alone.begin() + begin, alone.begin() + end, expected.begin() + begin)) << t;
      }
      batch.ReverseBlocks();
      EXPECT_EQ(Attend(batch), expected);
    }
  }
}

// Of 128 tokens blocks are of whole groups of spans, of one of single spans.
TEST(DecodeAttentionGpu, SumsAreInOneOrderWhateverTheGeometry) {
  for (const uint32_t head_dim : {64u, 256u}) {
    DecodeBatch batch(
        {.heads = 32, .kv_heads = 8, .head_dim = head_dim, .positions = {4800 - 128}, .count = 128});
    CancelSpans(batch);
    DeviceBatch device(batch);
    for (const uint32_t window : {0u, 2048u, 2500u}) {
      GpuAttentionArgs args = device.args();
      args.window = window;
      CUDA_MUST(DecodeAttentionCuda(args, {}));
      const auto expected = device.out();
      device.ClearOut();
      for (args.first = 0, args.count = 1; args.first < 128; ++args.first) {
        CUDA_MUST(DecodeAttentionCuda(args, {}));
      }
      EXPECT_EQ(device.out(), expected) << "heads of " << head_dim << ", window " << window;
    }
  }
}

TEST(DecodeAttentionGpu, EveryFp8CodeIsItsValue) {
  DecodeBatch batch = EveryFp8Code();
  ExpectEveryFp8Code(Attend(batch));
}

// Behind the kernel of RoPE.
std::vector<uint16_t> RopeAndAttend(RopeDecodeBatch& batch) {
  DeviceBatch device(batch);
  const DeviceArray<float> cos(batch.cos), sin(batch.sin);
  GpuRopeKvArgs rope = batch.RopeArgs();
  rope.batch = device.args().batch;
  rope.qkv = const_cast<uint16_t*>(device.args().q);
  rope.cos = cos.data();
  rope.sin = sin.data();
  rope.kv = device.args().kv;
  CUDA_MUST(RopeKvCuda(rope, {}));
  CUDA_MUST(DecodeAttentionCuda(device.args(), {.follows = true}));
  device.GetPool(batch);
  return device.out();
}

// `count` tokens a call, each following the one before: what is read before the wait must not be of it.
std::vector<uint16_t> AttendWithRope(RopeDecodeBatch& batch, uint32_t count, uint32_t spare_spans = 0) {
  DeviceBatch device(batch, spare_spans);
  const DeviceArray<float> cos(batch.cos), sin(batch.sin);
  GpuAttentionArgs args = device.args();
  args.cos = cos.data();
  args.sin = sin.data();
  args.neighbours = batch.FusedArgs().neighbours;
  const uint32_t tokens = args.count;
  args.count = count;
  for (args.first = 0; args.first < tokens; args.first += count) {
    CUDA_MUST(DecodeAttentionCuda(args, {.follows = args.first > 0 && count > 1}));
  }
  device.GetPool(batch);
  return device.out();
}

TEST(DecodeAttentionGpu, WithRopeItIsWhatRopeAndDecodeAre) {
  uint64_t seed = 0;
  for (const uint32_t head_dim : {32u, 64u, 128u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const uint32_t group : {1u, 4u, 7u, 8u, 9u, 16u}) {
        SCOPED_TRACE(testing::Message()
                     << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim << ", seed " << seed);
        const RopeDecodeBatch batch({.dtype = dtype,
                                     .heads = 2 * group,
                                     .kv_heads = 2,
                                     .head_dim = head_dim,
                                     .log2_block_tokens = static_cast<uint32_t>(4 + seed % 4),
                                     .positions = {0, 15, 16, 129, 255, 256, 700, 1500, 391, 2570},
                                     .seed = seed},
                                    /*neighbours=*/seed % 2 == 1);
        RopeDecodeBatch apart = batch, fused = batch, in_parts = batch;
        const auto expected = RopeAndAttend(apart);
        EXPECT_EQ(AttendWithRope(fused, /*count=*/10, /*spare_spans=*/seed % 3), expected);
        fused.ExpectSamePool(apart);
        EXPECT_EQ(AttendWithRope(in_parts, /*count=*/2), expected);
        in_parts.ExpectSamePool(apart);
        ++seed;
      }
    }
  }
}

// In one step behind RoPE's own kernel, and one by one.
TEST(DecodeAttentionGpu, ADraftHasTheBitsOfItsTokensOneByOne) {
  for (const KvDType dtype : kEveryGpuKvDType) {
    SCOPED_TRACE(KvDTypeName(dtype));
    const RopeDecodeBatch batch({.dtype = dtype,
                                 .heads = 32,
                                 .kv_heads = 8,
                                 .head_dim = 128,
                                 .positions = {13, 252, 1020},
                                 .count = 8},
                                /*neighbours=*/false);
    RopeDecodeBatch together = batch, single = batch;
    const auto expected = RopeAndAttend(together);
    EXPECT_EQ(AttendWithRope(single, /*count=*/1), expected);
    single.ExpectSamePool(together);
  }
}

TEST(DecodeAttentionGpu, RefusesWhatItCannotDo) {
  DecodeBatch batch({.heads = 4, .kv_heads = 2, .positions = {300}});
  DeviceBatch device(batch);
  const GpuAttentionArgs good = device.args();
  const auto expect = [](const GpuAttentionArgs& args) {
    EXPECT_EQ(DecodeAttentionCuda(args, {}), cudaErrorInvalidValue);
  };
  GpuAttentionArgs bad = good;
  bad.batch.head_dim = 96;
  expect(bad);
  bad = good;
  bad.heads = 34;
  expect(bad);
  bad = good;
  bad.batch.head_dim = 256;
  bad.heads = 18;
  expect(bad);
  bad = good;
  bad.kv.dtype = KvDType::kF32;
  expect(bad);
  bad = good;
  bad.q += 1;
  expect(bad);
  bad = good;
  bad.batch.log2_block_tokens = 3;
  expect(bad);
  bad = good;
  bad.arrived = nullptr;
  expect(bad);
  bad = good;
  const DeviceArray<float> angles(64);
  bad.cos = angles.data();
  expect(bad);
  bad = good;
  bad.cos = bad.sin = angles.data();
  bad.q_pitch = good.heads * good.batch.head_dim;
  expect(bad);
  bad = good;
  bad.cos = bad.sin = angles.data();
  bad.window = 100;
  expect(bad);
  bad.window = 0;
  bad.softcap = 30;
  expect(bad);
  bad.softcap = 0;
  bad.batch.head_dim = 256;
  bad.q_pitch *= 4;
  expect(bad);
  bad = good;
  bad.softcap = -1;
  expect(bad);
  bad = good;
  bad.count = 0;
  EXPECT_EQ(DecodeAttentionCuda(bad, {}), cudaSuccess);
  CUDA_MUST(cudaDeviceSynchronize());
}

// Not a check: printed for whoever tunes the kernel. Keys and values are bytes of ones and scales of NaN;
// their sums do not matter.
TEST(DecodeAttentionGpu, ReadsAtTheSpeedOfMemory) {
  cudaStream_t stream;
  CUDA_MUST(cudaStreamCreate(&stream));
  constexpr size_t kCopyBytes = size_t{1} << 31;
  double copied = 0;
  {
    DeviceArray<std::byte> from(kCopyBytes), to(kCopyBytes);
    copied =
        2.0 * kCopyBytes / SecondsOf(stream, 5, 4, [&] {
          CUDA_MUST(cudaMemcpyAsync(to.data(), from.data(), kCopyBytes, cudaMemcpyDeviceToDevice, stream));
        });
  }
  std::printf("copy: %.0f GB/s\n", copied / 1e9);
  const struct {
    KvDType dtype;
    uint32_t count, positions, heads, kv_heads, head_dim;
  } cases[] = {
      {KvDType::kBF16, 64, 8192, 32, 8, 128},  {KvDType::kF16, 64, 8192, 32, 8, 128},
      {KvDType::kInt8, 64, 8192, 32, 8, 128},  {KvDType::kFp8, 64, 8192, 32, 8, 128},
      {KvDType::kBF16, 64, 8192, 64, 4, 128},  {KvDType::kBF16, 64, 8192, 32, 8, 64},
      {KvDType::kBF16, 16, 8192, 32, 8, 128},  {KvDType::kBF16, 64, 1024, 32, 8, 128},
      {KvDType::kBF16, 1, 1024, 32, 8, 128},   {KvDType::kBF16, 1, 8192, 32, 8, 128},
      {KvDType::kBF16, 1, 131072, 32, 8, 128}, {KvDType::kBF16, 64, 8192, 16, 8, 256},
      {KvDType::kInt8, 64, 8192, 16, 8, 256},  {KvDType::kBF16, 1, 8192, 16, 8, 256},
  };
  for (const auto& c : cases) {
    // Calls in turn read other memory, 256 MiB in all or more: what one leaves in the cache is no use to the
    // next.
    const uint32_t sequence_blocks = c.positions / 16, of_call = sequence_blocks * c.count;
    const size_t row_bytes = c.head_dim * KvElementBytes(c.dtype);
    const size_t block_bytes = 2 * c.kv_heads * 16 * row_bytes;
    const auto copies =
        static_cast<uint32_t>(std::max<size_t>((size_t{256} << 20) / (of_call * block_bytes), 1));
    const uint32_t blocks = of_call * copies;
    std::vector<int32_t> tables(blocks);
    for (uint32_t i = 0; i < blocks; ++i) tables[i] = static_cast<int32_t>((uint64_t{i} * 40503) % blocks);
    std::vector<uint32_t> sequences(c.count * copies);
    for (uint32_t i = 0; i < sequences.size(); ++i) sequences[i] = i;
    const DeviceArray<int32_t> device_tables(tables);
    const DeviceArray<uint32_t> device_sequences(sequences);
    const DeviceArray<uint32_t> positions(std::vector<uint32_t>(c.count, c.positions - 1));
    const size_t rows = size_t{blocks} * 16 * c.kv_heads;
    const DeviceArray<std::byte> keys(rows * row_bytes), values(rows * row_bytes);
    const DeviceArray<float> key_scales(HasScales(c.dtype) ? rows : 0), value_scales(key_scales.size());
    const DeviceArray<uint16_t> q(std::vector<uint16_t>(c.count * c.heads * c.head_dim, 0x3f80)),
        out(q.size());
    GpuAttentionArgs args;
    args.count = c.count;
    args.most_spans = c.positions / kGpuAttentionSpan;
    const DeviceArray<float> partials(
        GpuAttentionPartialFloats(c.count, c.heads, c.head_dim, args.most_spans));
    const DeviceArray<uint32_t> arrived(std::vector<uint32_t>(c.count * c.kv_heads, 0));
    args.batch = {.tokens = c.count,
                  .positions = positions.data(),
                  .sequences = device_sequences.data(),
                  .block_tables = device_tables.data(),
                  .table_pitch = sequence_blocks,
                  .kv_heads = c.kv_heads,
                  .head_dim = c.head_dim,
                  .blocks = blocks,
                  .log2_block_tokens = 4};
    args.q = q.data();
    args.q_pitch = c.heads * c.head_dim;
    args.out = out.data();
    args.kv = {c.dtype, {keys.data(), key_scales.data()}, {values.data(), value_scales.data()}};
    args.heads = c.heads;
    args.scale = 0.1f;
    args.partials = partials.data();
    args.arrived = arrived.data();
    uint32_t call = 0;
    const double seconds = SecondsOf(stream, 7, 20, [&] {
      args.batch.sequences = device_sequences.data() + call++ % copies * c.count;
      CUDA_MUST(DecodeAttentionCuda(args, {.stream = stream, .follows = true}));
    });
    const double bytes =
        2.0 * c.count * c.positions * c.kv_heads * (row_bytes + (HasScales(c.dtype) ? sizeof(float) : 0));
    std::printf("%s, %u x %u positions, %u heads of %u to %u: %.1f us, %.0f GB/s, %.3f of a copy\n",
                KvDTypeName(c.dtype).data(), c.count, c.positions, c.heads, c.head_dim, c.kv_heads,
                seconds * 1e6, bytes / seconds / 1e9, bytes / seconds / copied);
  }
  CUDA_MUST(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace terrace
