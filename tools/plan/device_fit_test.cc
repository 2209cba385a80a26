#include "tools/plan/device_fit.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::HasSubstr;

// Llama 3.1 70B's sizes, with a context that memory is enough for.
ModelConfig LargeConfig() {
  ModelConfig config;
  config.family = "llama";
  config.vocab_size = 128'256;
  config.context_length = 8192;
  config.hidden_size = 8192;
  config.layers = 80;
  config.heads = 64;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.ffn_size = 28'672;
  return config;
}

ModelShape Large(DType dtype = DType::kBF16) { return ShapeOf(LargeConfig(), dtype).value(); }

std::vector<SplitFit> Fits(const ModelShape& shape, const char* devices, const FitOptions& options = {}) {
  const auto fits = FitSplits(shape, ParseDevices(devices).value(), options);
  CHECK(fits.ok(), Message(fits.status()));
  return fits->splits;
}

const SplitFit& Find(const std::vector<SplitFit>& fits, const ParallelDegrees& degrees) {
  const auto found = std::ranges::find(fits, degrees, &SplitFit::degrees);
  CHECK(found != fits.end());
  return *found;
}

TEST(ParseDevices, KnowsNamesAndSizes) {
  const struct {
    const char* text;
    uint32_t count;
    uint64_t bytes;
    const char* name;
    bool has_assumed_rates;
  } cases[] = {{"8x80GB", 8, 80'000'000'000, "H100", true},
               {"2x24GiB", 2, uint64_t{24} << 30, "RTX4090", true},
               {"4x141GB", 4, 141'000'000'000, "H200", true},
               {"8xH100", 8, 80'000'000'000, "H100", false},
               {"4xa100-40gb", 4, 40'000'000'000, "A100-40GB", false},
               {"rtx4090", 1, 24'000'000'000, "RTX4090", false},
               {"16GB", 1, 16'000'000'000, "RTX4090", true}};
  for (const auto& each : cases) {
    const auto group = ParseDevices(each.text);
    ASSERT_TRUE(group.ok()) << each.text << ": " << group.status();
    EXPECT_EQ(group->count, each.count) << each.text;
    EXPECT_EQ(group->device.memory_bytes, each.bytes) << each.text;
    EXPECT_EQ(group->device.name, each.name) << each.text;
    EXPECT_EQ(group->has_assumed_rates, each.has_assumed_rates) << each.text;
    EXPECT_GT(group->device.bytes_per_second, 0);
    EXPECT_GT(group->device.operations_per_second, 0);
  }
}

TEST(ParseDevices, NamesWhatIsWrongAndItsLimit) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "is neither a size such as 80GB nor one of H100, "},
      {"0x80GB", "0 devices, not 1 to 64"},
      {"65x80GB", "65 devices, not 1 to 64"},
      {"99999999999x80GB", "not 1 to 64"},
      {"8x", "\"\" is neither a size"},
      {"8xTPU", "\"TPU\" is neither a size"},
      {"8x80", "\"80\" is neither a size"},
      {"8xT4", "\"T4\" is neither a size"},
      {"8x80GBx2", "\"80GBx2\" is neither"},
      {"-1x80GB", "\"-1x80GB\" is neither"}};
  for (const auto& [text, error] : cases) {
    const Status status = ParseDevices(text).status();
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << text;
    EXPECT_THAT(Message(status), HasSubstr(error));
  }
}

TEST(FitSplits, HasEveryPairOfDegreesThatDividesTheDevices) {
  const std::vector<SplitFit> fits = Fits(Large(), "6x80GB");
  std::vector<std::pair<uint32_t, uint32_t>> want;
  for (uint32_t tensor = 1; tensor <= 6; ++tensor) {
    for (uint32_t pipeline = 1; pipeline <= 6; ++pipeline) {
      if (6 % (tensor * pipeline) == 0) want.emplace_back(tensor, pipeline);
    }
  }
  ASSERT_EQ(fits.size(), want.size());
  for (size_t i = 0; i < fits.size(); ++i) {
    EXPECT_EQ(std::pair(fits[i].degrees.tensor, fits[i].degrees.pipeline), want[i]);
    EXPECT_EQ(fits[i].replicas * fits[i].degrees.ranks(), 6u);
    EXPECT_GE(fits[i].batch * fits[i].replicas, 6u * 16);
  }
  EXPECT_THAT(Find(fits, {.tensor = 3}).why_not, HasSubstr("3 ranks: not a power of two"));
}

TEST(FitSplits, ALargeModelFitsOnlyWhereItIsSplitEnough) {
  const std::vector<SplitFit> fits = Fits(Large(), "8x80GB", {.batch = 32});  // 141 GB of weights
  EXPECT_THAT(Find(fits, {}).why_not, HasSubstr("weights of 14"));
  EXPECT_FALSE(Find(fits, {.tensor = 2}).fits()) << "71 GB of weights leave too little";
  EXPECT_TRUE(Find(fits, {.tensor = 4}).fits()) << Find(fits, {.tensor = 4}).why_not;
  EXPECT_TRUE(Find(fits, {.tensor = 8}).fits());
  EXPECT_TRUE(Recommend(fits).has_value());
  EXPECT_TRUE(fits[*Recommend(fits)].fits());
}

TEST(FitSplits, EmbeddingsTakeBf16WhateverTheFormatOfTheModel) {
  const uint64_t layers_and_output = uint64_t{80} * 855'638'016 + uint64_t{128'256} * 8192;
  const uint64_t norms = 161 * 8192 * sizeof(float), embedding = uint64_t{128'256} * 8192 * 2;
  EXPECT_EQ(Fits(Large(DType::kQ4_0), "H100").front().weight_bytes,
            layers_and_output / 32 * 18 + norms + embedding);
  EXPECT_EQ(Fits(Large(), "H100").front().weight_bytes, layers_and_output * 2 + norms + embedding);
}

TEST(FitSplits, MemoryIsNeverPromisedTwice) {
  for (const char* devices : {"8x80GB", "4x141GB", "2x24GB", "8xB200"}) {
    const DeviceGroup group = ParseDevices(devices).value();
    for (const DType dtype : {DType::kBF16, DType::kInt8, DType::kQ4_0}) {
      for (const SplitFit& fit : Fits(Large(dtype), devices, {.batch = 8})) {
        if (!fit.fits()) {
          EXPECT_NE(fit.why_not, "");
          continue;
        }
        EXPECT_LE(fit.weight_bytes + fit.workspace_bytes, group.device.memory_bytes);
        EXPECT_GE(fit.kv_tokens, 8192u) << "a worker needs a whole context";
        EXPECT_GE(fit.kv_tokens, uint64_t{fit.batch} * 4096);
        EXPECT_EQ(fit.kv_tokens % 16, 0u);
      }
    }
  }
}

TEST(FitSplits, MoreMemoryNeverFitsLess) {
  const std::vector<SplitFit> small = Fits(Large(), "8x60GB"), large = Fits(Large(), "8x100GB");
  ASSERT_EQ(small.size(), large.size());
  for (size_t i = 0; i < small.size(); ++i) {
    EXPECT_GE(large[i].kv_tokens, small[i].kv_tokens);
    EXPECT_GE(large[i].fits(), small[i].fits());
  }
}

TEST(FitSplits, AShortPoolSaysWhatIsThereAndWhatIsNeeded) {
  const std::vector<SplitFit> fits = Fits(Large(), "4xH100", {.batch = 4000});
  EXPECT_THAT(Find(fits, {.tensor = 4}).why_not, HasSubstr("4000 sequences of 4096 need 16384000"));
  EXPECT_EQ(Recommend(fits), std::nullopt);
}

TEST(FitSplits, BytesAreToldInUnitsToo) {
  EXPECT_THAT(Fits(Large(), "H100").front().why_not,
              HasSubstr("are not less than the 78400000000 bytes (73.0 GiB) that a device has after 2% for "
                        "libraries"));
  EXPECT_THAT(Fits(Large(), "1MB").front().why_not, HasSubstr("980000 bytes (0.9 MiB)"));
}

TEST(FitSplits, WhatGpuWorkersRefuseFitsNowhere) {
  const struct {
    void (*change)(ModelConfig&);
    const char* why_not;
  } cases[] = {
      {[](ModelConfig& c) { c.head_dim = 96; }, "heads of 96 elements; GPU workers take 32, 64, 128 and 256"},
      {[](ModelConfig& c) { c.kv_heads = 2; },
       "32 query heads of 128 elements to a key-value head; GPU workers take up to 16"},
      {[](ModelConfig& c) { c.kv_heads = 4, c.head_dim = 256; },
       "16 query heads of 256 elements to a key-value head; GPU workers take up to 8"},
      {[](ModelConfig& c) { c.hidden_size = 8224; },
       "a hidden size of 8224; GPU workers take multiples of 64"},
      {[](ModelConfig& c) { c.ffn_size = 28'704; }, "a feed-forward size of 28704; "},
      {[](ModelConfig& c) { c.heads = c.kv_heads = 9, c.head_dim = 32; }, "a query width of 288; "},
      {[](ModelConfig& c) { c.context_length = 1 << 24; }, "a context of 16777216 tokens; "},
      {[](ModelConfig& c) { c.vocab_size = 524'289; },
       "a vocabulary of 524289; GPU workers take up to 524288"},
      {[](ModelConfig& c) {
         c.ffn_sizes.assign(c.layers, c.ffn_size);
         c.ffn_sizes.front() = 64;
       },
       "feed-forward sizes from 64 to 28672; GPU workers take layers of equal ones"}};
  for (const auto& [change, why_not] : cases) {
    ModelConfig config = LargeConfig();
    change(config);
    const std::vector<SplitFit> fits = Fits(ShapeOf(config, DType::kBF16).value(), "8xB200");
    EXPECT_THAT(fits.front().why_not, HasSubstr(why_not));
    EXPECT_EQ(Recommend(fits), std::nullopt);
  }
}

TEST(FitSplits, HeadsOfEverySizeThatGpuWorkersTakeFit) {
  for (const uint32_t head_dim : {32u, 64u, 128u, 256u}) {
    ModelConfig config = LargeConfig();
    config.head_dim = head_dim;  // 8 query heads to a key-value head
    EXPECT_NE(Recommend(Fits(ShapeOf(config, DType::kBF16).value(), "8xB200")), std::nullopt) << head_dim;
  }
}

// Alone a GPU takes any number of tokens; ranks have equal whole tiles of them.
TEST(FitSplits, VocabulariesOfAnyNumberFitOneGpu) {
  for (const uint32_t vocab_size : {32'001u, 50'257u, 524'288u}) {
    ModelConfig config = LargeConfig();
    config.vocab_size = vocab_size;
    const std::vector<SplitFit> fits = Fits(ShapeOf(config, DType::kBF16).value(), "2xB200", {.batch = 2});
    EXPECT_EQ(Find(fits, {.tensor = 1}).why_not, "") << vocab_size;
    EXPECT_EQ(Find(fits, {.tensor = 2}).fits(), vocab_size == 524'288) << vocab_size;
  }
}

// Of groups: the rules and the words are theirs.
TEST(FitSplits, SplitsThatGpuWorkersRefuseDoNotFit) {
  const auto why_not = [](const ParallelDegrees& degrees, void (*change)(ModelConfig&), DType dtype) {
    ModelConfig config = LargeConfig();
    if (change != nullptr) change(config);
    return Find(Fits(ShapeOf(config, dtype).value(), "32xB200"), degrees).why_not;
  };
  const struct {
    ParallelDegrees degrees;
    void (*change)(ModelConfig&);
    const char* why_not;
  } cases[] = {
      {{.tensor = 1, .pipeline = 2}, nullptr, "group.pipeline_parallel: 2 is for CPUs only; CUDA has 1"},
      {{.tensor = 4, .pipeline = 2}, nullptr, "group.pipeline_parallel: 2 is for CPUs only; CUDA has 1"},
      {{.tensor = 32}, nullptr, "group.ranks: 32 is for CPUs only; CUDA has up to 16"},
      {{.tensor = 4},
       [](ModelConfig& c) { c.vocab_size = 32'016; },
       "a vocabulary of 32016 for 4 ranks; on GPUs multiples of 16 for each are"},
      {{.tensor = 4},
       [](ModelConfig& c) { c.head_dim = 32, c.heads = c.kv_heads = 4; },
       "on GPUs, which take 64 columns together: the 1 attention heads of a rank are 32 wide"}};
  for (const auto& each : cases)
    EXPECT_THAT(why_not(each.degrees, each.change, DType::kBF16), HasSubstr(each.why_not));
  // Blocks are those of the format, where they are longer than the kernels'.
  const auto narrow = [](ModelConfig& c) { c.ffn_size = 2048; };
  EXPECT_EQ(why_not({.tensor = 16}, narrow, DType::kBF16), "");
  EXPECT_THAT(why_not({.tensor = 16}, narrow, DType::kQ4_K), HasSubstr("has 8 blocks of 256"));
}

TEST(FitSplits, RefusesWhatTheModelCannotDo) {
  const DeviceGroup group = ParseDevices("H100").value();
  const struct {
    FitOptions options;
    const char* error;
  } cases[] = {{{.context = 8193}, "a context of 8193 tokens is more than the model's 8192"},
               {{.prefill_tokens = 0}, "no tokens"},
               {{.kv_dtype = "f32"}, "f32 keys and values are for CPUs"},
               {{.kv_dtype = "f64"}, "f64"}};
  for (const auto& [options, error] : cases) {
    const Status status = FitSplits(Large(), group, options).status();
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << status;
    EXPECT_THAT(Message(status), HasSubstr(error));
  }
}

TEST(Recommend, TakesTheFastestAndOfEqualsTheOneWithTheFewestRanks) {
  std::vector<SplitFit> fits(4);
  fits[0] = {.degrees = {1, 1}, .why_not = "no", .decode_tokens_per_second = 1000};
  fits[1] = {.degrees = {2, 1}, .decode_tokens_per_second = 90};
  fits[2] = {.degrees = {4, 1}, .decode_tokens_per_second = 99};
  fits[3] = {.degrees = {8, 1}, .decode_tokens_per_second = 100};
  EXPECT_EQ(Recommend(fits), 2u);
  fits[2].decode_tokens_per_second = 97;
  EXPECT_EQ(Recommend(fits), 3u);
  for (SplitFit& fit : fits) fit.why_not = "no";
  EXPECT_EQ(Recommend(fits), std::nullopt);
  EXPECT_EQ(Recommend({}), std::nullopt);
}

}  // namespace
}  // namespace terrace
