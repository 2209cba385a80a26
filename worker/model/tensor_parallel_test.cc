// A model on several ranks, here threads of one process, gives the bits of one rank with the same virtual
// shards, and each rank keeps its own part of it alone.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/gemm/weight_strips.h"
#include "worker/model/model_testing.h"
#include "worker/model/testing_split.h"
#include "worker/parallel/local_communicator.h"

namespace terrace {
namespace {

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

// Embedding and all, on every rank its own rows or all of them.
TEST_P(TensorParallelOfWeights, MatricesThatHaveToBeMadeGiveTheSameBits) {
  const RandomModel model(GetParam().dtype, /*seed=*/13, WideConfig());
  const MadeModel made(model);
  const auto tokens = RandomTokens(20, model.config.vocab_size, /*seed=*/14);
  const auto want = LogitsOf({model.config, model, 1, 8}, tokens);
  for (const uint32_t ranks : {1u, 2u, 4u})
    EXPECT_EQ(LogitsOf({model.config, made, ranks, 8}, tokens), want) << ranks << " ranks";
}

TEST(TensorParallel, ModelsOfOtherFamiliesGiveTheSameBitsOnAnyNumberOfRanks) {
  for (const ModelConfig& config : WithSwitches(WideConfig())) {
    const RandomModel model(DType::kQ8_0, /*seed=*/15, config);
    const auto tokens = RandomTokens(40, model.config.vocab_size, /*seed=*/16);
    const auto want = LogitsOf({model.config, model, 1, 4}, tokens);
    for (const uint32_t ranks : {2u, 4u})
      EXPECT_EQ(LogitsOf({model.config, model, ranks, 4}, tokens), want)
          << config.family << ", " << ranks << " ranks";
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
  ModelRank rank(split, group[0].get());
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
      const ModelRank rank({.config = config, .weights = model, .ranks = ranks}, group[i].get());
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
  ModelRank rank({.config = files.config, .weights = *files.weights, .ranks = 2}, group[0].get());
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
