// SampleCuda on a GPU, against kernels/sample/sample_testing.h.
#include <cstring>

#include "gtest/gtest.h"
#include "kernels/sample/sample_cuda.h"
#include "kernels/sample/sample_testing.h"
#include "tests/gpu/gpu_testing.h"

namespace terrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr uint32_t kLlamaVocab = 128'256;

// A batch on the device.
struct DeviceBatch {
  explicit DeviceBatch(const std::vector<SampleCase>& cases, const SamplePadding& padding = {})
      : DeviceBatch(SampleBatch(cases, padding)) {}
  explicit DeviceBatch(const SampleBatch& batch)
      : logits(batch.logits),
        params(batch.params),
        adjustments(batch.adjustments),
        results(batch.params.size()),
        scratch(GpuSampleScratchBytes(static_cast<uint32_t>(batch.params.size()), batch.vocab)),
        args{.logits = logits.data(),
             .rows = static_cast<uint32_t>(batch.params.size()),
             .vocab = batch.vocab,
             .pitch = batch.pitch,
             .samples = batch.samples,
             .tops = batch.tops,
             .params = params.data(),
             .adjustments = adjustments.data(),
             .results = results.data(),
             .scratch = scratch.data()} {}

  DeviceArray<float> logits;
  DeviceArray<GpuSampleRow> params;
  DeviceArray<GpuLogitAdjustment> adjustments;
  DeviceArray<GpuSampleResult> results;
  DeviceArray<uint8_t> scratch;
  GpuSampleArgs args;
};

std::vector<GpuSampleResult> Sample(const std::vector<SampleCase>& cases, const SamplePadding& padding = {}) {
  const DeviceBatch batch(cases, padding);
  CUDA_MUST(SampleCuda(batch.args, {.stream = nullptr, .follows = true}));
  return batch.results.Get();
}

// Returns how many of the rows left more than one token to the draw.
size_t ExpectAllSampled(const std::vector<SampleCase>& cases, const SamplePadding& padding = {}) {
  const auto results = Sample(cases, padding);
  size_t open = 0;
  for (size_t row = 0; row < cases.size(); ++row) {
    const GpuSampleRow& p = cases[row].params;
    SCOPED_TRACE(testing::Message() << "row " << row << " of vocabulary " << cases[row].logits.size()
                                    << ": temperature " << p.temperature << " top_k " << p.top_k << " top_p "
                                    << p.top_p << " min_p " << p.min_p << " uniform " << p.uniform);
    open += ExpectSampled(cases[row], results[row]) ? 0 : 1;
  }
  return open;
}

TEST(SampleGpu, ChoosesAsTheReferenceDoes) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform;
  for (const uint32_t vocab : {1u, 5u, 300u, 4097u, 32'000u, kLlamaVocab, kGpuMostSampleVocab}) {
    std::vector<SampleCase> cases = {{ModelLogits(vocab, 2, random), {.top = kGpuMostTop}}};
    for (GpuSampleRow params : SampleCuts()) {
      params.uniform = uniform(random);
      params.top = cases.size() % 4 == 0 ? 5 : 0;
      cases.push_back({ModelLogits(vocab, cases.size() % 2 == 0 ? 0.5f : 3.0f, random), params});
    }
    const size_t open = ExpectAllSampled(cases);
    if (vocab > 5000) continue;  // the bound spans several tokens of a flat row
    EXPECT_LE(open, cases.size() / 10);
  }
}

TEST(SampleGpu, WhatPadsARowIsNeitherChosenNorCounted) {
  std::mt19937_64 random(10);
  for (const uint32_t vocab : {1u, 3u, 1003u, 4081u, 4097u, 32'001u, 50'257u})
    ExpectAllSampled(CasesBelowPadding(vocab, random), kHeadPadding);
}

TEST(SampleGpu, ChoosesFromHardRows) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> uniform;
  const auto cuts = SampleCuts();
  size_t next = 0;
  for (const uint32_t vocab : {7u, 5000u, kLlamaVocab}) {
    std::vector<SampleCase> cases;
    for (const NamedLogits& row : HardLogits(vocab, random)) {
      cases.push_back({row.logits, {.top = 20}});
      for (int i = 0; i < 3; ++i) {
        GpuSampleRow params = cuts[next++ % cuts.size()];
        params.uniform = next % 5 == 0 ? 0 : next % 7 == 0 ? 1 - 0x1p-53 : uniform(random);
        cases.push_back({row.logits, params});
      }
    }
    ExpectAllSampled(cases);
  }
}

TEST(SampleGpu, NothingIsChosenFromNumericErrors) {
  std::mt19937_64 random(3);
  for (const uint32_t vocab : {1u, 5u, kLlamaVocab}) {
    std::vector<SampleCase> cases;
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
      for (const uint32_t place : {0u, vocab / 2, vocab - 1}) {
        auto logits = ModelLogits(vocab, 1, random);
        logits[place] = bad;
        cases.push_back({logits, {.temperature = place % 2 == 0 ? 1.0f : 0.0f, .uniform = 0.5, .top = 3}});
      }
    }
    cases.push_back({std::vector<float>(vocab, -kInfinity), {.temperature = 1}});
    cases.push_back({std::vector<float>(vocab, -kInfinity), {}});
    ExpectAllSampled(cases);
  }
}

TEST(SampleGpu, ChoosesByAdjustedLogitsAndReportsRawOnes) {
  std::mt19937_64 random(4);
  std::uniform_real_distribution<double> uniform;
  for (const uint32_t vocab : {5u, 5000u, kLlamaVocab}) {
    std::vector<SampleCase> cases;
    for (const uint32_t count : {1, 33, 1100, 30'000}) {
      for (const float temperature : {0.0f, 0.7f}) {
        SampleCase one = {
            ModelLogits(vocab, 1, random),
            {.temperature = temperature, .top_p = 0.9f, .uniform = uniform(random), .top = count % 7}};
        for (uint32_t i = 0; i < count; ++i) {
          one.adjustments.push_back({.token = static_cast<int32_t>(random() % vocab),
                                     .bias = static_cast<float>(random() % 9) - 4,
                                     .repetition = 0.5f + static_cast<float>(random() % 100) / 50,
                                     .subtract = static_cast<double>(random() % 100) / 70});
        }
        std::stable_sort(one.adjustments.begin(), one.adjustments.end(),
                         [](const auto& a, const auto& b) { return a.token < b.token; });
        cases.push_back(std::move(one));
      }
    }
    ExpectAllSampled(cases);
  }
}

// Chi-square of the tokens of many rows that differ in their uniform alone. With 9 degrees of freedom it
// passes 34 once in 10,000 seeds; the seed is fixed.
TEST(SampleGpu, DrawsInProportion) {
  constexpr uint32_t kDraws = 8192;
  std::mt19937_64 random(5);
  std::uniform_real_distribution<double> uniform;
  std::vector<float> logits;
  for (int i = 0; i < 10; ++i) logits.push_back(static_cast<float>(i * 7 % 10) / 3);
  std::vector<SampleCase> cases;
  for (uint32_t i = 0; i < kDraws; ++i)
    cases.push_back({logits, {.temperature = 1.3f, .uniform = uniform(random)}});
  std::vector<double> drawn(logits.size());
  for (const GpuSampleResult& result : Sample(cases)) ++drawn.at(static_cast<size_t>(result.token));
  double sum = 0, chi_square = 0;
  for (const float logit : logits) sum += std::exp(logit / 1.3);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double expected = kDraws * std::exp(logits[i] / 1.3) / sum;
    chi_square += (drawn[i] - expected) * (drawn[i] - expected) / expected;
  }
  EXPECT_LT(chi_square, 34);
}

std::vector<SampleCase> MixedBatch(uint32_t rows, uint32_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform;
  const auto cuts = SampleCuts();
  std::vector<SampleCase> cases;
  for (uint32_t row = 0; row < rows; ++row) {
    GpuSampleRow params = row % 3 == 0 ? GpuSampleRow{} : cuts[row % cuts.size()];
    params.uniform = uniform(random);
    params.top = row % 4 == 1 ? 20 : 0;
    cases.push_back({ModelLogits(vocab, row % 2 == 0 ? 0.5f : 3.0f, random),
                     params,
                     {{.token = static_cast<int32_t>(row), .bias = 2}}});
  }
  return cases;
}

TEST(SampleGpu, ARowDoesNotDependOnItsBatch) {
  const auto cases = MixedBatch(64, kLlamaVocab, 6);
  const auto together = Sample(cases), again = Sample(cases);
  EXPECT_EQ(std::memcmp(together.data(), again.data(), cases.size() * sizeof(GpuSampleResult)), 0);
  for (size_t row = 0; row < cases.size(); row += 5) {
    const auto alone = Sample({cases[row]});
    EXPECT_EQ(std::memcmp(&alone[0], &together[row], sizeof(GpuSampleResult)), 0) << "row " << row;
  }
}

TEST(SampleGpu, AGraphServesOtherRowsThanItWasCapturedWith) {
  const auto first = MixedBatch(16, 5000, 7), second = MixedBatch(16, 5000, 8);
  const DeviceBatch batch(first);
  cudaStream_t stream;
  CUDA_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CUDA_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  CUDA_MUST(SampleCuda(batch.args, {.stream = stream, .follows = true}));
  cudaGraph_t graph;
  CUDA_MUST(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec;
  CUDA_MUST(cudaGraphInstantiate(&exec, graph, 0));
  for (const auto& cases : {first, second}) {
    const SampleBatch host(cases);
    CUDA_MUST(cudaMemcpy(batch.args.logits, host.logits.data(), host.logits.size() * sizeof(float),
                         cudaMemcpyHostToDevice));
    CUDA_MUST(cudaMemcpy(batch.params.data(), host.params.data(), host.params.size() * sizeof(GpuSampleRow),
                         cudaMemcpyHostToDevice));
    CUDA_MUST(cudaGraphLaunch(exec, stream));
    CUDA_MUST(cudaStreamSynchronize(stream));
    const auto got = batch.results.Get();
    for (size_t row = 0; row < cases.size(); ++row) {
      SCOPED_TRACE(testing::Message() << "row " << row);
      ExpectSampled(cases[row], got[row]);
    }
  }
  CUDA_MUST(cudaGraphExecDestroy(exec));
  CUDA_MUST(cudaGraphDestroy(graph));
  CUDA_MUST(cudaStreamDestroy(stream));
}

TEST(SampleGpu, SaysWhatItDoesNotSupport) {
  EXPECT_EQ(SampleCuda({.rows = 1, .vocab = 0, .pitch = 4}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(SampleCuda({.rows = 1, .vocab = 5, .pitch = 6}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(SampleCuda({.rows = 1, .vocab = 8, .pitch = 4}, {}), cudaErrorInvalidValue);
  const uint32_t most = kGpuMostSampleVocab;
  EXPECT_EQ(SampleCuda({.rows = 1, .vocab = most + 1, .pitch = most + 4}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(SampleCuda({.rows = 0, .vocab = 8, .pitch = 8}, {}), cudaSuccess);
}

// Not a check: prints times. --gtest_also_run_disabled_tests
TEST(SampleGpu, DISABLED_Times) {
  const struct {
    const char* name;
    float spread;
    GpuSampleRow params;
  } kinds[] = {{"greedy", 3, {}},
               {"greedy, top 20", 3, {.top = 20}},
               {"temperature 1", 3, {.temperature = 1}},
               {"temperature 1, flat", 0.5f, {.temperature = 1}},
               {"top_p 0.9", 3, {.temperature = 1, .top_p = 0.9f}},
               {"top_k 50, top_p 0.9", 3, {.temperature = 1, .top_k = 50, .top_p = 0.9f}},
               {"top_k 50, top_p 0.9, flat", 0.5f, {.temperature = 1, .top_k = 50, .top_p = 0.9f}}};
  cudaStream_t stream;
  CUDA_MUST(cudaStreamCreate(&stream));
  std::mt19937_64 random(9);
  for (const auto& kind : kinds) {
    const auto logits = ModelLogits(kLlamaVocab, kind.spread, random);
    for (const uint32_t rows : {1u, 64u, 128u, 256u}) {
      std::vector<SampleCase> cases;
      for (uint32_t row = 0; row < rows; ++row) {
        cases.push_back({logits, kind.params});
        cases[row].params.uniform = (row + 0.5) / rows;
      }
      const DeviceBatch batch(cases);
      const double seconds = SecondsOf(
          stream, 5, 20, [&] { CUDA_MUST(SampleCuda(batch.args, {.stream = stream, .follows = true})); });
      const double bytes = 4.0 * rows * kLlamaVocab;
      std::printf("%-28s %3u rows  %7.1f us  %6.0f GB/s of one pass\n", kind.name, rows, seconds * 1e6,
                  bytes / seconds / 1e9);
    }
  }
  CUDA_MUST(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace terrace
