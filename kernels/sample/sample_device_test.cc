// The kernels of sample_device.h, emulated, against sample_testing.h.
#include "kernels/sample/sample_device.h"

#include <cstring>

#include "kernels/sample/sample_testing.h"

namespace terrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// `seed` is of the order of the threads.
std::vector<GpuSampleResult> Sample(const std::vector<SampleCase>& cases, uint64_t seed = 0,
                                    const SamplePadding& padding = {}) {
  SampleBatch batch(cases, padding);
  const auto rows = static_cast<uint32_t>(cases.size());
  size_t bytes;
  SampleScratchAt(nullptr, rows, batch.vocab, bytes);
  std::vector<uint64_t> scratch(bytes / sizeof(uint64_t), ~uint64_t{0});
  std::vector<GpuSampleResult> results(rows);
  std::memset(static_cast<void*>(results.data()), 0xff, rows * sizeof(GpuSampleResult));
  const GpuSampleArgs args = {.logits = batch.logits.data(),
                              .rows = rows,
                              .vocab = batch.vocab,
                              .pitch = batch.pitch,
                              .samples = batch.samples,
                              .tops = batch.tops,
                              .params = batch.params.data(),
                              .adjustments = batch.adjustments.data(),
                              .results = results.data(),
                              .scratch = scratch.data()};
  EXPECT_TRUE(IsSampleSupported(args));
  LaunchSample(args, [&](auto* kernel, uint32_t parts, uint32_t grid_rows, uint32_t threads, size_t shared,
                         const GpuSampleArgs& a, const SampleScratch& s) {
    simt::RunSeeded(seed, parts > 0 ? simt::Dim3{parts, grid_rows, 1} : simt::Dim3{grid_rows, 1, 1}, threads,
                    shared, kernel, a, s);
    return true;
  });
  return results;
}

// Returns how many of the rows left more than one token to the draw.
size_t ExpectAllSampled(const std::vector<SampleCase>& cases, uint64_t seed = 0,
                        const SamplePadding& padding = {}) {
  const auto results = Sample(cases, seed, padding);
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

TEST(SampleDevice, GreedyTakesTheFirstLargest) {
  std::mt19937_64 random(1);
  for (const uint32_t vocab : {1, 2, 5, 257, 4096, 4097, 5000}) {
    std::vector<SampleCase> cases;
    for (const float spread : {0.01f, 3.0f}) cases.push_back({ModelLogits(vocab, spread, random), {}});
    for (const NamedLogits& row : HardLogits(vocab, random)) cases.push_back({row.logits, {}});
    ExpectAllSampled(cases, vocab % 3);
  }
}

TEST(SampleDevice, DrawsByInverseCumulativeProbability) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> uniform;
  size_t rows = 0, open = 0;
  for (const uint32_t vocab : {1, 300, 4099, 5000}) {
    std::vector<SampleCase> cases;
    for (GpuSampleRow params : SampleCuts()) {
      params.uniform = uniform(random);
      // All likely, more than are listed; or few.
      cases.push_back({ModelLogits(vocab, vocab == 4099 ? 4.0f : 0.5f, random), params});
    }
    rows += cases.size();
    open += ExpectAllSampled(cases, vocab % 3);
  }
  EXPECT_LE(open, rows / 50);  // else the comparison says little
}

TEST(SampleDevice, DrawsFromHardRows) {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> uniform;
  const auto cuts = SampleCuts();
  size_t next = 0;
  for (const uint32_t vocab : {7, 4000, 5000}) {  // with up to so many tokens in one bin: a list has 4096
    std::vector<SampleCase> cases;
    for (const NamedLogits& row : HardLogits(vocab, random)) {
      for (int i = 0; i < 3; ++i) {
        GpuSampleRow params = cuts[next++ % cuts.size()];
        params.uniform = next % 5 == 0 ? 0 : next % 7 == 0 ? 1 - 0x1p-53 : uniform(random);
        cases.push_back({row.logits, params});
      }
    }
    ExpectAllSampled(cases, vocab);
  }
}

// The last part of a row ends before its pitch, or the pitch within another part.
TEST(SampleDevice, WhatPadsARowIsNeitherChosenNorCounted) {
  std::mt19937_64 random(10);
  for (const uint32_t vocab : {1, 3, 1003, 4081, 4095, 4097, 5003})
    ExpectAllSampled(CasesBelowPadding(vocab, random), vocab, kHeadPadding);
}

// The bin's sum is known by its low word, wherever in the bin its tokens lie.
TEST(SampleDevice, ABinKeepsTheSumOfItsWeights) {
  constexpr float kLastOctaves = 0x1.5ffffep+5f;
  uint32_t bins = 0;
  float begin = 0;
  while (begin < kWeightOctaves) {
    const uint32_t bin = BinOf(begin);
    float end = (static_cast<float>(bin) + 0.5f) / kBinsPerOctave;  // the last of the bin
    while (BinOf(end) <= bin) end = std::nextafter(end, kInfinity);
    end = std::min(std::nextafter(end, 0.0f), kLastOctaves);
    ASSERT_EQ(BinOf(end), bin);
    for (const float octaves : {begin, (begin + end) / 2, end}) {
      for (const uint32_t count : {1u, 2u, kBlockParts * kSamplePart}) {
        const SampleWeight want = count * WeightOf(octaves, bin);
        ASSERT_EQ(WeightOfBin(bin, count, count * StepsOf(octaves, bin)), want) << octaves << " " << count;
      }
      ASSERT_NEAR(static_cast<double>(WeightOf(octaves, bin)), std::exp2(44.0 - octaves),
                  1 + std::exp2(22.0 - octaves));
    }
    ++bins;
    begin = std::nextafter(end, kInfinity);
  }
  EXPECT_EQ(bins, 44 * kBinsPerOctave + 1);
}

void SortKernel(uint64_t* list, uint32_t count) { SortList(list, count); }

TEST(SampleDevice, SortsListsOfEveryLength) {
  std::mt19937_64 random(9);
  for (uint32_t count = 1; count <= kSampleListed; count += 1 + count / 5 + count / 1000 * 500) {
    std::vector<uint64_t> list(count);
    for (uint64_t& place : list) place = random() >> (count % 2 == 0 ? 0 : 56);
    std::vector<uint64_t> want = list;
    std::sort(want.begin(), want.end());
    simt::RunSeeded(count, simt::Dim3{1, 1, 1}, kSampleThreads, 0, SortKernel, list.data(), count);
    EXPECT_EQ(list, want) << count;
  }
  for (const uint32_t count : {4095u, kSampleListed}) {
    std::vector<uint64_t> list(count);
    for (uint32_t i = 0; i < count; ++i) list[i] = count - i;
    simt::RunSeeded(1, simt::Dim3{1, 1, 1}, kSampleThreads, 0, SortKernel, list.data(), count);
    EXPECT_TRUE(std::is_sorted(list.begin(), list.end()));
  }
}

TEST(SampleDevice, EveryCutOfTiesIsExact) {
  std::mt19937_64 random(4);
  std::uniform_real_distribution<double> uniform;
  std::vector<SampleCase> cases;
  for (const NamedLogits& row : HardLogits(5000, random)) {
    if (row.name != "three levels" && row.name != "next to each other") continue;
    for (GpuSampleRow params : SampleCuts()) {
      params.uniform = uniform(random);
      cases.push_back({row.logits, params});
    }
  }
  ExpectAllSampled(cases);
}

TEST(SampleDevice, NothingIsChosenFromNumericErrors) {
  std::mt19937_64 random(5);
  for (const uint32_t vocab : {1, 4097}) {
    std::vector<SampleCase> cases;
    for (const float temperature : {0.0f, 1.0f}) {
      for (const float bad :
           {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
        for (const uint32_t place : {0u, vocab / 2, vocab - 1}) {
          auto logits = ModelLogits(vocab, 1, random);
          logits[place] = bad;
          cases.push_back({logits, {.temperature = temperature, .uniform = 0.5, .top = 3}});
        }
      }
      cases.push_back({std::vector<float>(vocab, -kInfinity), {.temperature = temperature, .top = 3}});
      cases.push_back({ModelLogits(vocab, 1, random), {.temperature = temperature, .uniform = 0.5}});
    }
    ExpectAllSampled(cases, vocab);
  }
}

TEST(SampleDevice, ListsTheMostLikelyOfTheRawLogits) {
  std::mt19937_64 random(6);
  for (const uint32_t vocab : {1, 19, 20, 21, 100, 4096, 4100, 8195}) {
    std::vector<SampleCase> cases;
    for (const NamedLogits& row : HardLogits(vocab, random)) {
      cases.push_back({row.logits, {.top = static_cast<uint32_t>(1 + cases.size() * 7 % kGpuMostTop)}});
    }
    cases.push_back({ModelLogits(vocab, 2, random), {.top = kGpuMostTop}, {{.token = 0, .bias = 50}}});
    cases.push_back({ModelLogits(vocab, 2, random), {.temperature = 1, .uniform = 0.3, .top = kGpuMostTop}});
    ExpectAllSampled(cases, vocab % 3);
  }
}

std::vector<GpuLogitAdjustment> RandomAdjustments(uint32_t vocab, uint32_t count, std::mt19937_64& random) {
  std::vector<GpuLogitAdjustment> all;
  std::vector<uint32_t> tokens;
  for (uint32_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<uint32_t>(random() % vocab));  // some twice
  std::sort(tokens.begin(), tokens.end());
  for (const uint32_t token : tokens) {
    all.push_back({.token = static_cast<int32_t>(token),
                   .bias = static_cast<float>(random() % 9) - 4,
                   .repetition = 0.5f + static_cast<float>(random() % 100) / 50,
                   .subtract = static_cast<double>(random() % 100) / 70});
  }
  return all;
}

TEST(SampleDevice, ChoosesByAdjustedLogitsAndReportsRawOnes) {
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> uniform;
  for (const uint32_t vocab : {5, 300, 5000}) {
    std::vector<SampleCase> cases;
    for (const uint32_t count : {1, 31, 33, 1100}) {
      for (const float temperature : {0.0f, 0.7f}) {
        cases.push_back(
            {ModelLogits(vocab, 1, random),
             {.temperature = temperature, .top_p = 0.9f, .uniform = uniform(random), .top = count % 7},
             RandomAdjustments(vocab, count, random)});
      }
    }
    // Everything but one token out of reach; beyond the largest f32.
    std::vector<GpuLogitAdjustment> all;
    for (uint32_t i = 0; i < vocab; ++i) {
      all.push_back({.token = static_cast<int32_t>(i), .bias = i == 3 ? 100.0f : -100.0f});
    }
    cases.push_back({ModelLogits(vocab, 1, random), {.temperature = 1, .uniform = 0.9}, all});
    std::vector<float> huge(vocab, -1);
    huge[vocab - 1] = huge[vocab - 2] = -3e38f;
    huge[1] = -kInfinity;
    cases.push_back({huge,
                     {.temperature = 1, .uniform = 0.99},
                     {{.token = 0, .bias = -4},
                      {.token = 1, .bias = 100, .repetition = 2, .subtract = -2},
                      {.token = static_cast<int32_t>(vocab - 1), .bias = 1, .repetition = 10}}});
    ExpectAllSampled(cases, vocab % 3);
  }
}

// Blocks have one part or several, as the rows are few or many.
TEST(SampleDevice, ARowDoesNotDependOnItsBatchNorOnTheOrderOfThreads) {
  std::mt19937_64 random(8);
  std::uniform_real_distribution<double> uniform;
  constexpr uint32_t kVocab = 4 * kSamplePart + 100;
  std::vector<SampleCase> cases;
  while (cases.size() < kBlockPartsRows) {
    for (GpuSampleRow params : SampleCuts()) {
      params.uniform = uniform(random);
      params.top = cases.size() % 2 == 0 ? 5 : 0;
      cases.push_back({ModelLogits(kVocab, cases.size() % 3 == 0 ? 0.5f : 2.0f, random), params,
                       RandomAdjustments(kVocab, 10, random)});
    }
  }
  const auto together = Sample(cases, 9);
  for (size_t row = 0; row < cases.size(); ++row) {
    SCOPED_TRACE(testing::Message() << "row " << row);
    ExpectSampled(cases[row], together[row]);
    if (row % 3 != 0) continue;
    const auto alone = Sample({cases[row]}, 10 + row);
    EXPECT_EQ(std::memcmp(&alone[0], &together[row], sizeof(GpuSampleResult)), 0);
  }
}

// Uniforms at equal distances draw each token as often as its probability says, to one.
TEST(SampleDevice, DrawsInProportion) {
  constexpr int kDraws = 64;
  const std::vector<float> logits = {0.3f, 2.0f, -1.0f, 2.0f, 1.1f, -kInfinity, 0.0f};
  std::vector<SampleCase> cases;
  for (int i = 0; i < kDraws; ++i)
    cases.push_back({logits, {.temperature = 1.3f, .uniform = (i + 0.5) / kDraws}});
  std::vector<int> drawn(logits.size());
  for (const GpuSampleResult& result : Sample(cases)) ++drawn[static_cast<size_t>(result.token)];
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit / 1.3);
  for (size_t i = 0; i < logits.size(); ++i) {
    EXPECT_NEAR(drawn[i], kDraws * std::exp(logits[i] / 1.3) / sum, 1) << "token " << i;
  }
}

}  // namespace
}  // namespace terrace
