// Prefill attention on a GPU against the reference, as prefill_attention_device_test.cc does without one.
#include "kernels/attention/prefill_attention_cuda.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "gtest/gtest.h"
#include "kernels/attention/prefill_attention_testing.h"
#include "tests/gpu/device_data.h"
#include "tests/gpu/gpu_testing.h"

namespace terrace {
namespace {

std::vector<uint16_t> Attend(PrefillBatch& batch) {
  const DevicePrefillBatch device(batch);
  CUDA_MUST(PrefillAttentionCuda(device.args(), {}));
  return device.out();
}
std::vector<uint16_t> Attend(PrefillBatch& batch, PrefillKernel kernel) {
  const DevicePrefillBatch device(batch);
  CUDA_MUST(PrefillAttentionCuda(device.args(), kernel, {}));
  return device.out();
}

// Those that the device has for such a batch.
std::span<const PrefillKernel> KernelsOf(PrefillBatch& batch) { return PrefillKernels(batch.Args()); }
std::string NameOf(PrefillKernel kernel) { return Concat("kernel ", static_cast<int>(kernel)); }

// Of every kernel: up to 64 of the tokens, the first and the last among them, as the reference is slow.
void ExpectReference(PrefillBatch& batch) {
  std::vector<uint32_t> chosen;
  const uint32_t step = std::max(batch.tokens() / 63, 1u);
  for (uint32_t t = 0; t < batch.tokens(); t += step) chosen.push_back(t);
  chosen.push_back(batch.tokens() - 1);
  const auto expected = batch.Reference(chosen);
  for (const PrefillKernel kernel : KernelsOf(batch)) {
    SCOPED_TRACE(NameOf(kernel));
    const auto out = Attend(batch, kernel);
    for (size_t i = 0; i < expected.out.size(); ++i) {
      const uint32_t token = chosen[i / batch.width()];
      ASSERT_NEAR(FloatFromBF16(out[token * batch.width() + i % batch.width()]), expected.out[i],
                  expected.tolerance[i])
          << "token " << token << ", element " << i % batch.width();
    }
    for (size_t i = 0; i < out.size(); ++i) ASSERT_TRUE(std::isfinite(FloatFromBF16(out[i]))) << i;
  }
}

TEST(PrefillAttentionGpu, MatchesTheReference) {
  uint64_t seed = 0;
  for (const uint32_t head_dim : {32u, 64u, 128u, 256u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const auto& sequences : std::vector<std::vector<PrefillShape::Sequence>>{
               {{0, 1}}, {{0, 100}, {5, 33}, {63, 2}, {300, 70}}, {{0, 2048}}, {{1000, 555}, {77, 300}}}) {
        SCOPED_TRACE(testing::Message()
                     << KvDTypeName(dtype) << ", head_dim " << head_dim << ", seed " << seed);
        PrefillBatch batch({.dtype = dtype,
                            .heads = 8,
                            .kv_heads = 2,
                            .head_dim = head_dim,
                            .log2_block_tokens = static_cast<uint32_t>(4 + seed % 4),
                            .sequences = sequences,
                            .seed = seed});
        ExpectReference(batch);
        ++seed;
      }
    }
  }
}

TEST(PrefillAttentionGpu, MatchesTheReferenceInAWindowAndWithACap) {
  uint64_t seed = 0;
  for (const uint32_t head_dim : {32u, 64u, 128u, 256u}) {
    for (const KvDType dtype : kEveryGpuKvDType) {
      for (const auto& [window, softcap] : std::vector<std::pair<uint32_t, float>>{
               {1, 0}, {63, 0}, {64, 0}, {200, 50}, {1024, 0}, {UINT32_MAX, 0}, {0, 50}, {0, 2}}) {
        SCOPED_TRACE(testing::Message() << KvDTypeName(dtype) << ", head_dim " << head_dim << ", window "
                                        << window << ", cap " << softcap << ", seed " << seed);
        PrefillBatch batch({.dtype = dtype,
                            .heads = 8,
                            .kv_heads = 2,
                            .head_dim = head_dim,
                            .log2_block_tokens = static_cast<uint32_t>(4 + seed % 4),
                            .sequences = {{0, 1}, {1003, 555}, {77, 300}, {0, 100}, {63, 2}},
                            .magnitude = 2,
                            .window = window,
                            .softcap = softcap,
                            .seed = seed});
        ExpectReference(batch);
        ++seed;
      }
    }
  }
}

// Blocks of the kernels for Hopper take several items each, of one tile and of many.
TEST(PrefillAttentionGpu, MatchesTheReferenceOfMoreItemsThanMultiprocessors) {
  for (const uint32_t head_dim : {64u, 128u}) {
    PrefillBatch batch({.heads = 32,
                        .kv_heads = 8,
                        .head_dim = head_dim,
                        .sequences = {{0, 1500}, {700, 400}, {0, 1}, {0, 64}, {0, 129}, {16, 65}},
                        .seed = head_dim});
    ExpectReference(batch);
  }
}

TEST(PrefillAttentionGpu, TakesScoresThatGrow) {
  for (const uint32_t head_dim : {128u, 256u}) {
    PrefillBatch batch({.head_dim = head_dim, .sequences = {{200, 500}}, .growth = 0.02f});
    ExpectReference(batch);
  }
}

void ExpectSameBitsOfEveryCut(const PrefillShape& shape) {
  PrefillBatch batch(shape);
  const auto whole = batch.runs;
  for (const PrefillKernel kernel : KernelsOf(batch)) {
    SCOPED_TRACE(NameOf(kernel));
    batch.runs = whole;
    const auto expected = Attend(batch, kernel);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(Attend(batch, kernel), expected);
    for (const uint32_t most : {1u, 33u, 100u}) {
      batch.runs.clear();
      for (const PrefillChunk& chunk : batch.chunks) {
        for (uint32_t begin = 0; begin < chunk.count; begin += most) {
          batch.runs.push_back({chunk.first + begin, std::min(most, chunk.count - begin)});
        }
      }
      EXPECT_EQ(Attend(batch, kernel), expected) << "runs of " << most;
    }
  }
}
TEST(PrefillAttentionGpu, ATokensBitsDependNeitherOnTheCutNorOnTheBatch) {
  for (const uint32_t head_dim : {32u, 64u, 128u, 256u}) {
    for (const auto& [window, softcap] :
         std::vector<std::pair<uint32_t, float>>{{0, 0}, {1, 0}, {65, 0}, {300, 0}, {300, 20}}) {
      SCOPED_TRACE(testing::Message()
                   << "head_dim " << head_dim << ", window " << window << ", cap " << softcap);
      ExpectSameBitsOfEveryCut({.heads = 4,
                                .head_dim = head_dim,
                                .sequences = {{37, 1000}, {0, 40}},
                                .growth = 0.002f,
                                .window = window,
                                .softcap = softcap});
    }
  }
}

void ExpectNaNReachesWhoSeesIt(uint32_t head_dim) {
  for (const uint32_t window : {0u, 1u, 40u, 100u}) {
    for (const uint32_t bad : {100u, 170u, 230u, 399u}) {
      SCOPED_TRACE(testing::Message()
                   << "heads of " << head_dim << ", window " << window << ", value " << bad);
      PrefillBatch batch({.heads = 1, .head_dim = head_dim, .sequences = {{150, 250}}, .window = window});
      if (window != 0 && bad + window <= 150) continue;  // its block is no one's
      PrefillBatch broken = batch;
      const uint64_t at = KvRow(batch.Args().batch, 0, 0, bad) * head_dim + 9;
      broken.values[2 * at] = broken.values[2 * at + 1] = std::byte{0xff};
      for (const PrefillKernel kernel : KernelsOf(batch)) {
        SCOPED_TRACE(NameOf(kernel));
        const auto good = Attend(batch, kernel), out = Attend(broken, kernel);
        for (size_t i = 0; i < out.size(); ++i) {
          const size_t position = 150 + i / head_dim;
          ASSERT_TRUE(std::isfinite(FloatFromBF16(good[i]))) << i;
          if (position < bad || (window != 0 && position - bad >= window)) {
            ASSERT_EQ(out[i], good[i]) << i;
          } else if (i % head_dim == 9) {
            ASSERT_TRUE(std::isnan(FloatFromBF16(out[i]))) << i;
          }
        }
      }
    }
  }
}
TEST(PrefillAttentionGpu, NaNReachesThoseWhoSeeItOnly) {
  ExpectNaNReachesWhoSeesIt(128);
  ExpectNaNReachesWhoSeesIt(256);
}

TEST(PrefillAttentionGpu, RejectsWhatItDoesNotSupport) {
  PrefillBatch batch({.sequences = {{0, 3}}});
  const DevicePrefillBatch device(batch);
  const auto error = [&](auto change) {
    GpuAttentionArgs args = device.args();
    change(args);
    return PrefillAttentionCuda(args, {});
  };
  GpuAttentionArgs of_f16 = device.args();
  of_f16.kv.dtype = KvDType::kF16;
  EXPECT_EQ(PrefillAttentionCuda(of_f16, PrefillKernel::kWgmma, {}), cudaErrorNotSupported);
  EXPECT_EQ(error([](GpuAttentionArgs& a) { a.run_count = 0; }), cudaSuccess);
  EXPECT_EQ(error([](GpuAttentionArgs& a) { a.batch.head_dim = 96; }), cudaErrorInvalidValue);
  EXPECT_EQ(error([](GpuAttentionArgs& a) { a.kv.dtype = KvDType::kF32; }), cudaErrorInvalidValue);
  EXPECT_EQ(error([](GpuAttentionArgs& a) { a.scale = 0; }), cudaErrorInvalidValue);
  EXPECT_EQ(error([](GpuAttentionArgs& a) { a.softcap = -1; }), cudaErrorInvalidValue);
  EXPECT_EQ(error([](GpuAttentionArgs& a) { a.q += 1; }), cudaErrorInvalidValue);
  EXPECT_EQ(error([](GpuAttentionArgs& a) { a.batch.log2_block_tokens = 3; }), cudaErrorInvalidValue);
}

TEST(PrefillAttentionGpu, IsCapturedByAGraph) {
  PrefillBatch batch({.kv_heads = 2, .head_dim = 128, .sequences = {{10, 200}}});
  const auto expected = Attend(batch);
  const DevicePrefillBatch device(batch);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CUDA_MUST(cudaStreamCreate(&stream));
  CUDA_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  CUDA_MUST(PrefillAttentionCuda(device.args(), {.stream = stream}));
  CUDA_MUST(PrefillAttentionCuda(device.args(), {.stream = stream, .follows = true}));
  CUDA_MUST(cudaStreamEndCapture(stream, &graph));
  CUDA_MUST(cudaGraphInstantiate(&executable, graph, 0));
  CUDA_MUST(cudaGraphLaunch(executable, stream));
  CUDA_MUST(cudaStreamSynchronize(stream));
  EXPECT_EQ(device.out(), expected);
  CUDA_MUST(cudaGraphExecDestroy(executable));
  CUDA_MUST(cudaGraphDestroy(graph));
  CUDA_MUST(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace terrace
