// A model on several ranks, here threads of one process, gives the bits of one rank with the same virtual
// shards, and each rank keeps its own part of it alone.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/gemm/weight_strips.h"
#include "worker/model/model_testing.h"
#include "worker/parallel/local_communicator.h"

namespace terrace {
namespace {

constexpr Duration kLong = std::chrono::seconds(120);  // no rank misses it
constexpr uint32_t kBlocks = 16;                       // of 16 tokens

// How a model is run.
struct Split {
  const ModelConfig& config;
  const WeightSource& weights;
  uint32_t ranks = 1, virtual_shards = 0;
  ComputeType compute = ComputeType::kAuto;
  KvDType kv_dtype = KvDType::kF32;
  size_t threads = 1;
};

// One rank's model and KV pool.
struct Rank {
  Rank(const Split& split, Communicator* communicator) : pool(std::make_unique<ThreadPool>(split.threads)) {
    auto loaded = Transformer::Load(
        split.config, split.weights, CpuOps(), *pool,
        {.compute = split.compute, .virtual_shards = split.virtual_shards, .communicator = communicator});
    CHECK(loaded.ok(), Message(loaded.status()));
    transformer = *std::move(loaded);
    auto created = KvPool::Create({.layers = split.config.layers,
                                   .kv_heads = static_cast<uint32_t>(transformer->plan().kv_heads.size()),
                                   .head_dim = split.config.head_dim,
                                   .blocks = kBlocks,
                                   .dtype = split.kv_dtype});
    CHECK(created.ok(), Message(created.status()));
    kv = *std::move(created);
  }

  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Transformer> transformer;
  std::unique_ptr<KvPool> kv;
};

// Logits of all positions of two sequences: a prompt in two parts, then token by token beside another one.
std::vector<float> RunSteps(Rank& rank, const std::vector<int32_t>& tokens) {
  const std::vector<BlockId> others = {0};
  std::vector<BlockId> blocks;
  for (BlockId block = kBlocks - 1; block > 0; --block) blocks.push_back(block);
  std::vector<float> out;
  const auto forward = [&](const Batch& batch) {
    const auto logits = rank.transformer->Forward(batch, *rank.kv);
    CHECK(logits.ok(), Message(logits.status()));
    out.insert(out.end(), logits->begin(), logits->end());
  };
  const std::span<const int32_t> all = tokens;
  const size_t half = all.size() / 2, prompt = all.size() - 3;
  forward({.sequences = {{.tokens = all.first(half), .blocks = blocks, .logits = 0}}});
  forward({.sequences = {{.tokens = all.subspan(half, prompt - half),
                          .first_position = static_cast<uint32_t>(half),
                          .blocks = blocks,
                          .logits = static_cast<uint32_t>(prompt - half)}}});
  for (size_t i = prompt; i < all.size(); ++i) {
    const auto position = static_cast<uint32_t>(i), other = static_cast<uint32_t>(i - prompt);
    forward({.sequences = {
                 {.tokens = all.subspan(i, 1), .first_position = position, .blocks = blocks, .logits = 1},
                 {.tokens = all.subspan(i, 1), .first_position = other, .blocks = others, .logits = 1}}});
  }
  return out;
}

std::vector<float> LogitsOf(const Split& split, const std::vector<int32_t>& tokens) {
  if (split.ranks == 1) {
    Rank alone(split, nullptr);
    return RunSteps(alone, tokens);
  }
  auto group = MakeLocalCommunicators(split.ranks, kLong);
  std::vector<std::vector<float>> logits(split.ranks);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < split.ranks; ++i) {
    threads.emplace_back([&, i] {
      Rank rank(split, group[i].get());
      logits[i] = RunSteps(rank, tokens);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint32_t i = 1; i < split.ranks; ++i) EXPECT_TRUE(logits[i].empty()) << "rank " << i;
  return logits[0];
}

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(std::isfinite(a[i]) && std::isfinite(b[i])) << i;
    worst = std::max(worst, std::abs(double{a[i]} - b[i]));
  }
  return worst;
}

// Four ranks can share it out in every format: an attention's output of four blocks of 256, a feed-forward
// width of five; KV heads for two of them.
ModelConfig WideConfig() {
  ModelConfig config = RandomModel::SmallConfig();
  config.head_dim = 256;
  config.ffn_size = 5 * 256;
  return config;
}

class TensorParallelOfWeights : public testing::TestWithParam<DTypeInfo> {};

TEST_P(TensorParallelOfWeights, TheBitsDoNotDependOnTheNumberOfRanks) {
  const RandomModel model(GetParam().dtype, /*seed=*/1, WideConfig());
  const auto tokens = RandomTokens(40, model.config.vocab_size, /*seed=*/2);
  for (const uint32_t shards : {4u, 8u}) {
    const auto want = LogitsOf({model.config, model, 1, shards}, tokens);
    for (const uint32_t ranks : {2u, 4u}) {
      EXPECT_EQ(LogitsOf({model.config, model, ranks, shards}, tokens), want)
          << ranks << " ranks, " << shards << " virtual shards";
    }
  }
}

TEST(TensorParallel, LayersOfUnequalWidthGiveTheSameBitsOnAnyNumberOfRanks) {
  ModelConfig config = WideConfig();
  SetFfnSizes({4 * 32, 5 * 256}, config);
  const RandomModel model(DType::kQ8_0, /*seed=*/11, config);
  const auto tokens = RandomTokens(40, model.config.vocab_size, /*seed=*/12);
  const auto want = LogitsOf({model.config, model, 1, 4}, tokens);
  for (const uint32_t ranks : {2u, 4u})
    EXPECT_EQ(LogitsOf({model.config, model, ranks, 4}, tokens), want) << ranks << " ranks";
}

// The bounds of transformer_test: f32 by the order of sums, bf16 and int8 by the rounding of activations,
// which virtual shards put into other groups.
TEST_P(TensorParallelOfWeights, VirtualShardsMoveLogitsByNoMoreThanRounding) {
  const RandomModel model(GetParam().dtype, /*seed=*/3, WideConfig());
  const auto tokens = RandomTokens(40, model.config.vocab_size, /*seed=*/4);
  const auto exact = LogitsOf({model.config, model, 1, 1, ComputeType::kF32}, tokens);
  double spread = 0;
  for (const float logit : exact) spread += double{logit} * logit;
  spread = std::sqrt(spread / static_cast<double>(exact.size()));
  EXPECT_LT(LargestDifference(LogitsOf({model.config, model, 1, 4, ComputeType::kF32}, tokens), exact),
            2e-4 * (1 + spread));
  EXPECT_LT(LargestDifference(LogitsOf({model.config, model, 1, 4, ComputeType::kAuto}, tokens), exact),
            0.1 * (1 + spread));
}

std::vector<DTypeInfo> DTypesOfFiles() {
  std::vector<DTypeInfo> out(std::begin(kDTypes), std::end(kDTypes));
  std::erase_if(out, [](const DTypeInfo& info) { return info.dtype == DType::kInt8; });  // no encoder
  return out;
}
INSTANTIATE_TEST_SUITE_P(All, TensorParallelOfWeights, testing::ValuesIn(DTypesOfFiles()),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(TensorParallel, DemoModelsGiveTheBitsOfOneRankAndNearlyTheLogitsOfOneShard) {
  const struct {
    std::string path;
    uint32_t most_ranks;
  } cases[] = {{DemoFolder("terrace-demo-nano"), 2},
               {DemoGguf("terrace-demo-small"), 4},  // KV heads for two
               {DemoFolder("terrace-demo-base"), 4},
               {DemoGguf("terrace-demo-base"), 8}};
  for (const auto& each : cases) {
    const ModelFiles files = OpenTestModel(each.path);
    const auto tokens = RandomTokens(45, files.config.vocab_size, /*seed=*/5);
    for (const KvDType kv_dtype : {KvDType::kF32, KvDType::kInt8}) {
      Split split{.config = files.config,
                  .weights = *files.weights,
                  .virtual_shards = 8,
                  .compute = ComputeType::kF32,
                  .kv_dtype = kv_dtype};
      const auto want = LogitsOf(split, tokens);
      for (split.ranks = 2; split.ranks <= each.most_ranks; split.ranks *= 2) {
        SCOPED_TRACE(testing::Message()
                     << each.path << ", " << split.ranks << " ranks, KV " << KvDTypeName(kv_dtype));
        EXPECT_EQ(LogitsOf(split, tokens), want);
      }
      if (kv_dtype != KvDType::kF32) continue;  // rounding to int8 blows differences up
      split.ranks = split.virtual_shards = 1;
      EXPECT_LT(LargestDifference(LogitsOf(split, tokens), want), 2e-4) << each.path;
    }
  }
}

TEST(TensorParallel, ThreadsOfARankDoNotChangeTheBits) {
  const RandomModel model(DType::kQ8_0, /*seed=*/6, WideConfig());
  const auto tokens = RandomTokens(160, model.config.vocab_size, /*seed=*/7);  // sums that threads share
  Split split{.config = model.config, .weights = model, .ranks = 2, .virtual_shards = 4};
  const auto want = LogitsOf(split, tokens);
  split.threads = 3;
  EXPECT_EQ(LogitsOf(split, tokens), want);
}

TEST(TensorParallel, AGroupOfOneGivesTheBitsOfNone) {
  const RandomModel model(DType::kQ4_0, /*seed=*/8);
  const auto tokens = RandomTokens(40, model.config.vocab_size, /*seed=*/9);
  const Split split{.config = model.config, .weights = model};
  const auto group = MakeLocalCommunicators(1, kLong);
  Rank rank(split, group[0].get());
  EXPECT_EQ(RunSteps(rank, tokens), LogitsOf(split, tokens));
}

TEST(TensorParallel, TheNumberOfVirtualShardsIsPartOfWhatDecidesTheBits) {
  const RandomModel model(DType::kBF16, /*seed=*/10);
  const auto tokens = RandomTokens(40, model.config.vocab_size, /*seed=*/11);
  const auto one = LogitsOf({model.config, model, 1, 1}, tokens);
  EXPECT_EQ(LogitsOf({model.config, model, 1, 0}, tokens), one);
  EXPECT_NE(LogitsOf({model.config, model, 1, 4}, tokens), one);  // 64 inputs each: less than a group of gemm
}

// Its products have one block of 256 inputs.
TEST(TensorParallel, AModelTooSmallForVirtualShardsHasFewer) {
  const RandomModel model(DType::kQ4_K, /*seed=*/12);
  const auto tokens = RandomTokens(40, model.config.vocab_size, /*seed=*/13);
  EXPECT_EQ(LogitsOf({model.config, model, 1, 8}, tokens), LogitsOf({model.config, model, 1, 1}, tokens));
}

TEST(TensorParallel, EachRankKeepsItsOwnPartAlone) {
  const ModelConfig config = WideConfig();
  const RandomModel model(DType::kQ8_0, /*seed=*/14, config);
  for (const uint32_t ranks : {1u, 2u, 4u}) {
    const auto group = MakeLocalCommunicators(ranks, kLong);
    for (uint32_t i = 0; i < ranks; ++i) {
      const Rank rank({.config = config, .weights = model, .ranks = ranks}, group[i].get());
      const size_t hidden = config.hidden_size, heads = config.heads / ranks * config.head_dim;
      const size_t kv_heads = std::max(1u, config.kv_heads / ranks), kv = kv_heads * config.head_dim;
      const size_t ffn = config.ffn_size / ranks, vocabulary = config.vocab_size / ranks;
      const auto sum = [&](const auto& of) {  // over the matrices, [outputs, inputs]
        return config.layers * (of(heads, hidden) + 2 * of(kv, hidden) + of(hidden, heads) +
                                2 * of(ffn, hidden) + of(hidden, ffn));
      };
      const auto packed = [](size_t outputs, size_t inputs) {
        return StripsOf(outputs) * StripBytes(DType::kQ8_0, inputs);
      };
      const auto in_file = [](size_t outputs, size_t inputs) { return outputs * inputs / 32 * 34; };
      const auto elements = [](size_t outputs, size_t inputs) { return outputs * inputs; };
      const size_t norms = (2 * config.layers + 1) * hidden;
      SCOPED_TRACE(testing::Message() << "rank " << i << " of " << ranks);
      EXPECT_EQ(rank.transformer->packed_bytes(), sum(packed) + packed(vocabulary, hidden));
      EXPECT_EQ(rank.transformer->weight_bytes(),
                sum(in_file) + in_file(config.vocab_size, hidden) + norms * sizeof(float));
      EXPECT_EQ(rank.transformer->parameters(), sum(elements) + config.vocab_size * hidden + norms);
      EXPECT_EQ(rank.kv->shape().BlockBytes(),
                size_t{2} * config.layers * kv * rank.kv->shape().block_tokens * sizeof(float));
    }
  }
}

TEST(TensorParallel, WhatCannotBeSharedOutIsNotLoaded) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  const auto group = MakeLocalCommunicators(4, kLong);
  ThreadPool pool(1);
  const Status status =
      Transformer::Load(files.config, *files.weights, CpuOps(), pool, {.communicator = group[0].get()})
          .status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(Reason(status), "cannot_shard");
  EXPECT_NE(Message(status).find("2 attention heads are not a multiple of 4 ranks"), std::string::npos);
}

TEST(TensorParallel, AStepWithoutARankIsAnErrorThatNamesIt) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  auto group = MakeLocalCommunicators(2, kLong);
  Rank rank({.config = files.config, .weights = *files.weights, .ranks = 2}, group[0].get());
  group[1].reset();
  const std::vector<int32_t> tokens = {1, 2, 3};
  const std::vector<BlockId> blocks = {0};
  const Status status =
      rank.transformer->Forward({.sequences = {{.tokens = tokens, .blocks = blocks, .logits = 1}}}, *rank.kv)
          .status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_NE(Message(status).find("rank 1"), std::string::npos) << status;
}

}  // namespace
}  // namespace terrace
