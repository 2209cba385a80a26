// Run attention on a GPU against decode attention, whose bits it promises.
#include "kernels/attention/run_attention_cuda.h"

#include <algorithm>
#include <array>

#include "gtest/gtest.h"
#include "kernels/attention/decode_attention_cuda.h"
#include "kernels/attention/run_attention_testing.h"
#include "tests/gpu/device_data.h"
#include "tests/gpu/gpu_testing.h"

namespace terrace {
namespace {

bool HasSharedFor(const GpuAttentionArgs& args) {
  int device = 0, shared = 0;
  CUDA_MUST(cudaGetDevice(&device));
  CUDA_MUST(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return RunAttentionSharedBytes(args) <= static_cast<size_t>(shared);
}

std::vector<uint16_t> Attend(PrefillBatch& batch, bool follows = false, const RunLimits& limits = {}) {
  const DevicePrefillBatch device(batch);
  GpuAttentionArgs args = device.args();
  args.window = limits.window;
  args.softcap = limits.softcap;
  CUDA_MUST(RunAttentionCuda(args, {.follows = follows}));
  return device.out();
}

std::vector<uint16_t> Decode(PrefillBatch& batch, const RunLimits& limits = {}) {
  const DevicePrefillBatch device(batch);
  GpuAttentionArgs args = device.args();
  args.window = limits.window;
  args.softcap = limits.softcap;
  DecodeAll(args, batch);
  const DeviceArray<float> partials(
      GpuAttentionPartialFloats(args.count, args.heads, args.batch.head_dim, args.most_spans));
  const DeviceArray<uint32_t> arrived(std::vector<uint32_t>(args.count * args.batch.kv_heads, 0));
  args.partials = partials.data();
  args.arrived = arrived.data();
  CUDA_MUST(DecodeAttentionCuda(args, {}));
  return device.out();
}

TEST(RunAttentionGpu, HasTheBitsOfDecode) {
  uint64_t seed = 1;
  for (const KvDType dtype : kEveryGpuKvDType) {
    for (const uint32_t head_dim : {32u, 64u, 128u}) {
      for (const uint32_t group : {1u, 4u, 7u, 8u, 9u, 16u}) {
        SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim);
        PrefillBatch batch(RunShape(dtype, group, head_dim, seed++));
        if (!HasSharedFor(batch.Args())) GTEST_SKIP() << "too little shared memory";
        ExpectSameBits(batch, Attend(batch, /*follows=*/seed % 2 == 0), Decode(batch));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(RunAttentionGpu, HasTheBitsOfDecodeWithWindowsAndCaps) {
  uint64_t seed = 60;
  for (const RunLimits& limits : kRunLimits) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const uint32_t head_dim : {32u, 64u, 128u}) {
        const uint32_t group = std::to_array({1u, 4u, 7u, 8u, 9u, 16u})[seed % 6];
        SCOPED_TRACE(testing::Message()
                     << KvDTypeName(dtype) << ", " << group << " heads of " << head_dim << ", window "
                     << limits.window << ", cap " << limits.softcap << ", seed " << seed);
        PrefillBatch batch(RunShape(dtype, group, head_dim, seed++));
        if (!HasSharedFor(batch.Args())) GTEST_SKIP() << "too little shared memory";
        LeaveBehind(batch, limits.window);
        ExpectSameBits(batch, Attend(batch, /*follows=*/seed % 2 == 0, limits), Decode(batch, limits));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(RunAttentionGpu, SumsAreInTheOrderOfDecode) {
  PrefillBatch batch({.heads = 8, .kv_heads = 2, .head_dim = 128, .sequences = {{4800 - 60, 60}}});
  if (!HasSharedFor(batch.Args())) GTEST_SKIP() << "too little shared memory";
  CancelSpans(batch);
  for (const uint32_t window : {0u, 2048u, 2500u}) {
    SCOPED_TRACE(window);
    const RunLimits limits{.window = window};
    ExpectSameBits(batch, Attend(batch, /*follows=*/false, limits), Decode(batch, limits));
  }
}

// Whole prompts, and chunks far behind a prompt's beginning, cut anywhere.
TEST(RunAttentionGpu, LongPromptsHaveTheBitsOfDecode) {
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8}) {
    SCOPED_TRACE(KvDTypeName(dtype));
    PrefillBatch batch({.dtype = dtype,
                        .heads = 8,
                        .kv_heads = 2,
                        .head_dim = 128,
                        .sequences = {{0, 1300}, {5003, 77}, {2047, 130}},
                        .growth = 0.0005f,
                        .seed = 9});
    if (!HasSharedFor(batch.Args())) GTEST_SKIP() << "too little shared memory";
    const std::vector<uint16_t> want = Decode(batch);
    ExpectSameBits(batch, Attend(batch), want);
    const RunLimits limits{.window = 1000, .softcap = 30};
    ExpectSameBits(batch, Attend(batch, /*follows=*/false, limits), Decode(batch, limits));
    batch.runs.clear();
    for (uint32_t first = 0; first < 1300; first += 13) batch.runs.push_back({first, 13});
    batch.runs.push_back({1300, 77});
    batch.runs.push_back({1377, 127});
    batch.runs.push_back({1504, 3});
    ExpectSameBits(batch, Attend(batch), want);
  }
}

TEST(RunAttentionGpu, BrokenValuesReachOnlyTheirOwnAndLaterTokens) {
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8}) {
    PrefillBatch batch(RunShape(dtype, 4, 128, 50));
    if (!HasSharedFor(batch.Args())) GTEST_SKIP() << "too little shared memory";
    BreakValue(batch, 0, 5);
    BreakValue(batch, 1, 256);
    BreakValue(batch, 3, 1033);
    ExpectSameBits(batch, Attend(batch), Decode(batch));
  }
}

TEST(RunAttentionGpu, RefusesWhatItCannotDo) {
  PrefillBatch batch({.heads = 4, .kv_heads = 2, .sequences = {{0, 20}}});
  const DevicePrefillBatch device(batch);
  GpuAttentionArgs bad = device.args();
  bad.batch.head_dim = 96;
  EXPECT_EQ(RunAttentionCuda(bad, {}), cudaErrorInvalidValue);
  bad.batch.head_dim = 256;
  EXPECT_EQ(RunAttentionCuda(bad, {}), cudaErrorInvalidValue);
  bad = device.args();
  bad.runs = nullptr;
  EXPECT_EQ(RunAttentionCuda(bad, {}), cudaErrorInvalidValue);
  bad.run_count = 0;
  EXPECT_EQ(RunAttentionCuda(bad, {}), cudaSuccess);
}

}  // namespace
}  // namespace terrace
