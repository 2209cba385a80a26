// A model in stages, here of threads of one process, gives the bits of one rank, and each rank keeps its own
// layers alone.
#include <chrono>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "worker/model/model_testing.h"
#include "worker/model/testing_split.h"
#include "worker/parallel/local_communicator.h"
#include "worker/parallel/shard_plan.h"

namespace terrace {
namespace {

constexpr size_t kPrompt = 160;  // tokens, of which a step cuts some into micro-batches

ModelConfig FiveLayers() {
  ModelConfig config = RandomModel::SmallConfig();
  config.layers = 5;
  return config;
}

class PipelineParallelOfWeights : public testing::TestWithParam<DType> {};

TEST_P(PipelineParallelOfWeights, TheBitsDoNotDependOnTheNumberOfStages) {
  const RandomModel model(GetParam(), /*seed=*/1, FiveLayers());
  const auto tokens = RandomTokens(kPrompt, model.config.vocab_size, /*seed=*/2);
  const auto want = LogitsOf({model.config, model}, tokens);
  for (const uint32_t stages : {2u, 3u, 5u}) {  // of unequal numbers of layers, and of one each
    EXPECT_EQ(LogitsOf({.config = model.config, .weights = model, .ranks = stages, .stages = stages}, tokens),
              want)
        << stages << " stages";
  }
}

TEST_P(PipelineParallelOfWeights, StagesOfSeveralRanksGiveTheBitsOfAsManyRanksWithoutStages) {
  const RandomModel model(GetParam(), /*seed=*/3, FiveLayers());
  const auto tokens = RandomTokens(kPrompt, model.config.vocab_size, /*seed=*/4);
  const auto want = LogitsOf({model.config, model, /*ranks=*/1, /*virtual_shards=*/2}, tokens);
  EXPECT_EQ(LogitsOf({model.config, model, /*ranks=*/2, /*virtual_shards=*/2}, tokens), want);
  for (const uint32_t stages : {2u, 3u}) {
    const Split split{
        .config = model.config, .weights = model, .ranks = 2 * stages, .virtual_shards = 2, .stages = stages};
    EXPECT_EQ(LogitsOf(split, tokens), want) << stages << " stages of two ranks";
  }
}

// Their heads and feed-forward widths are whole blocks for two ranks.
INSTANTIATE_TEST_SUITE_P(Some, PipelineParallelOfWeights,
                         testing::Values(DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_0),
                         [](const auto& param_info) { return std::string(Info(param_info.param).name); });

TEST(PipelineParallel, AnOutputMatrixOfItsOwnAndLayersOfUnequalWidthGiveTheSameBits) {
  ModelConfig config = FiveLayers();
  config.tied_embeddings = false;
  SetFfnSizes({256, 32, 128, 64, 256}, config);
  const RandomModel model(DType::kQ8_0, /*seed=*/5, config);
  const auto tokens = RandomTokens(kPrompt, model.config.vocab_size, /*seed=*/6);
  const auto want = LogitsOf({model.config, model}, tokens);
  for (const uint32_t stages : {2u, 3u}) {
    EXPECT_EQ(LogitsOf({.config = model.config, .weights = model, .ranks = stages, .stages = stages}, tokens),
              want)
        << stages << " stages";
  }
}

// Each stage knows which of the model's layers its own are: windows differ.
TEST(PipelineParallel, ModelsOfOtherFamiliesGiveTheBitsOfOneRank) {
  for (const ModelConfig& config : WithSwitches(FiveLayers())) {
    const RandomModel model(DType::kQ8_0, /*seed=*/21, config);
    const auto tokens = RandomTokens(kPrompt, model.config.vocab_size, /*seed=*/22);
    const auto want = LogitsOf({model.config, model}, tokens);
    for (const uint32_t stages : {2u, 3u}) {
      EXPECT_EQ(
          LogitsOf({.config = model.config, .weights = model, .ranks = stages, .stages = stages}, tokens),
          want)
          << config.family << ", " << stages << " stages";
    }
  }
}

TEST(PipelineParallel, DemoModelsGiveTheBitsOfOneRank) {
  for (const std::string& path :
       {DemoFolder("terrace-demo-nano"), DemoGguf("terrace-demo-small"), DemoFolder("terrace-demo-base")}) {
    const ModelFiles files = OpenTestModel(path);
    const auto tokens = RandomTokens(kPrompt, files.config.vocab_size, /*seed=*/7);
    for (const KvDType kv_dtype : {KvDType::kF32, KvDType::kInt8}) {
      Split split{
          .config = files.config, .weights = *files.weights, .virtual_shards = 2, .kv_dtype = kv_dtype};
      const auto want = LogitsOf(split, tokens);
      for (const auto& [ranks, stages] : {std::pair(2u, 2u), std::pair(3u, 3u), std::pair(4u, 2u)}) {
        split.ranks = ranks;
        split.stages = stages;
        SCOPED_TRACE(testing::Message() << path << ", " << ranks << " ranks in " << stages << " stages, KV "
                                        << KvDTypeName(kv_dtype));
        EXPECT_EQ(LogitsOf(split, tokens), want);
      }
    }
  }
}

// Where a micro-batch begins in the middle of a prompt, and others hold several sequences.
TEST(PipelineParallel, SequencesThatShareAStepGiveTheSameBitsHoweverItIsCut) {
  const RandomModel model(DType::kQ8_0, /*seed=*/8, FiveLayers());
  const auto long_prompt = RandomTokens(70, model.config.vocab_size, /*seed=*/9);
  const auto scored = RandomTokens(60, model.config.vocab_size, /*seed=*/10);
  const auto begun = RandomTokens(61, model.config.vocab_size, /*seed=*/11);
  const std::vector<BlockId> blocks = {9, 2, 7, 4, 0}, scored_blocks = {1, 3, 5, 8},
                             begun_blocks = {15, 14, 13, 12};
  const auto run = [&](ModelRank& rank) {
    const auto logits =
        rank.transformer->Forward({.sequences = {{.tokens = long_prompt, .blocks = blocks, .logits = 1},
                                                 {.tokens = scored, .blocks = scored_blocks, .logits = 60},
                                                 {.tokens = begun, .blocks = begun_blocks, .logits = 0}}},
                                  *rank.kv);
    CHECK(logits.ok(), Message(logits.status()));
    return std::vector<float>(logits->begin(), logits->end());
  };
  Split split{.config = model.config, .weights = model};
  const auto want = LogitsOf(split, run);
  EXPECT_EQ(want.size(), size_t{61} * model.config.vocab_size);
  split.threads = 2;
  for (const uint32_t stages : {2u, 3u, 4u, 5u}) {
    split.ranks = split.stages = stages;
    EXPECT_EQ(LogitsOf(split, run), want) << stages << " stages";
  }
}

TEST(PipelineParallel, AStepWithoutLogitsGivesNoneAndWritesKeysAndValuesAllTheSame) {
  const RandomModel model(DType::kBF16, /*seed=*/12, FiveLayers());
  const auto tokens = RandomTokens(40, model.config.vocab_size, /*seed=*/13);
  const std::vector<BlockId> blocks = {3, 1, 2};
  const auto run = [&](ModelRank& rank) {
    const std::span<const int32_t> all = tokens;
    const auto none =
        rank.transformer->Forward({.sequences = {{.tokens = all.first(39), .blocks = blocks}}}, *rank.kv);
    CHECK(none.ok() && none->empty());
    const auto empty = rank.transformer->Forward({}, *rank.kv);
    CHECK(empty.ok() && empty->empty());
    const auto logits = rank.transformer->Forward(
        {.sequences = {{.tokens = all.last(1), .first_position = 39, .blocks = blocks, .logits = 1}}},
        *rank.kv);
    CHECK(logits.ok(), Message(logits.status()));
    return std::vector<float>(logits->begin(), logits->end());
  };
  EXPECT_EQ(LogitsOf({.config = model.config, .weights = model, .ranks = 3, .stages = 3}, run),
            LogitsOf({.config = model.config, .weights = model}, run));
}

TEST(PipelineParallel, EachStageKeepsItsOwnLayersAlone) {
  for (const bool is_tied : {true, false}) {
    ModelConfig config = FiveLayers();
    config.tied_embeddings = is_tied;
    const RandomModel model(DType::kQ8_0, /*seed=*/14, config);
    const uint64_t hidden = config.hidden_size, heads = config.heads * config.head_dim;
    const uint64_t kv = config.kv_heads * config.head_dim, vocabulary = config.vocab_size * hidden;
    const uint64_t of_layer =
        2 * hidden + 2 * hidden * heads + 2 * hidden * kv + 3 * hidden * config.ffn_size;
    const ModelRank whole({.config = config, .weights = model}, nullptr);
    for (const uint32_t stages : {2u, 3u, 5u}) {
      const auto group = MakeLocalCommunicators(stages, kLong);
      uint64_t packed_bytes = 0, block_bytes = 0;
      for (uint32_t i = 0; i < stages; ++i) {
        SCOPED_TRACE(testing::Message() << "stage " << i << " of " << stages << ", tied: " << is_tied);
        const ModelRank rank({.config = config, .weights = model, .ranks = stages, .stages = stages},
                             group[i].get());
        const uint64_t layers = LayersOfStage(5, i, stages).size();
        const bool is_first = i == 0, is_last = i + 1 == stages;
        EXPECT_EQ(rank.transformer->parameters(),
                  layers * of_layer + (is_first ? vocabulary : 0) + (is_last ? hidden + vocabulary : 0));
        EXPECT_EQ(rank.transformer->model_parameters(), whole.transformer->parameters());
        EXPECT_EQ(rank.kv->shape().layers, layers);
        packed_bytes += rank.transformer->packed_bytes();
        block_bytes += rank.kv->shape().BlockBytes();
      }
      EXPECT_EQ(packed_bytes, whole.transformer->packed_bytes());
      EXPECT_EQ(block_bytes, whole.kv->shape().BlockBytes());
    }
  }
}

TEST(PipelineParallel, MoreStagesThanLayersAreNotLoaded) {
  const RandomModel model(DType::kQ8_0, /*seed=*/15);
  const auto group = MakeLocalCommunicators(3, kLong);
  ThreadPool pool(1);
  const Status status =
      Transformer::Load(model.config, model, CpuOps(), pool, {.communicator = group[0].get(), .stages = 3})
          .status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(Reason(status), "cannot_shard");
  EXPECT_EQ(Message(status), "group.pipeline_parallel is 3, and the model has 2 layers");
}

TEST(PipelineParallel, AStepWithoutAStageIsAnErrorThatNamesIt) {
  const RandomModel model(DType::kQ8_0, /*seed=*/16);
  const std::vector<int32_t> tokens = {1, 2, 3};
  const std::vector<BlockId> blocks = {0};
  const Batch batch{.sequences = {{.tokens = tokens, .blocks = blocks, .logits = 1}}};
  const Split split{.config = model.config, .weights = model, .ranks = 2, .stages = 2};
  for (const uint32_t gone : {0u, 1u}) {
    auto group = MakeLocalCommunicators(2, kLong);
    ModelRank rank(split, group[1 - gone].get());
    group[gone].reset();
    const Status status = rank.transformer->Forward(batch, *rank.kv).status();
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_NE(Message(status).find(Concat("rank ", gone)), std::string::npos) << status;
  }
  auto group = MakeLocalCommunicators(2, std::chrono::milliseconds(1));
  ModelRank rank(split, group[0].get());
  const Status status = rank.transformer->Forward(batch, *rank.kv).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_NE(Message(status).find("rank 1 did not take part"), std::string::npos) << status;
  // Of more than two ranks the missed one may itself be waiting, which the error says.
  const RandomModel larger(DType::kQ8_0, /*seed=*/17, FiveLayers());
  auto three = MakeLocalCommunicators(3, std::chrono::milliseconds(1));
  ModelRank first({.config = larger.config, .weights = larger, .ranks = 3, .stages = 3}, three[0].get());
  const Status missed = first.transformer->Forward(batch, *first.kv).status();
  EXPECT_EQ(missed.code(), StatusCode::kDeadlineExceeded);
  EXPECT_NE(Message(missed).find("itself waiting for a rank that is beside it: rank 1 did not take part"),
            std::string::npos)
      << missed;
}

}  // namespace
}  // namespace terrace
