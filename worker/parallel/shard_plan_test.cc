#include "worker/parallel/shard_plan.h"

#include <ostream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {

// For messages of tests.
void PrintTo(const IndexRange& range, std::ostream* out) {
  *out << "[" << range.begin << ", " << range.end << ")";
}

namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ModelConfig Config(uint32_t heads, uint32_t kv_heads, uint32_t head_dim, uint32_t ffn_size,
                   uint32_t vocab_size) {
  ModelConfig config;
  config.layers = 1;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.ffn_size = ffn_size;
  config.vocab_size = vocab_size;
  return config;
}

ModelConfig OfLayers(uint32_t layers, ModelConfig config) {
  config.layers = layers;
  return config;
}

ShardPlan Plan(const ModelConfig& config, const ShardOptions& options) {
  const auto plan = PlanShard(config, options);
  CHECK(plan.ok(), Message(plan.status()));
  return *plan;
}

TEST(PlanShard, OneRankOwnsAll) {
  const ShardPlan plan = Plan(Config(7, 7, 10, 33, 5), {});
  EXPECT_EQ(plan.heads, (IndexRange{0, 7}));
  EXPECT_EQ(plan.kv_heads, (IndexRange{0, 7}));
  EXPECT_EQ(plan.Ffn(0), (IndexRange{0, 33}));
  EXPECT_EQ(plan.vocabulary, (IndexRange{0, 5}));
  EXPECT_THAT(plan.attention_shards, ElementsAre(IndexRange{0, 70}));
  EXPECT_THAT(plan.ffn_shards[0], ElementsAre(IndexRange{0, 33}));
}

TEST(PlanShard, EveryRankGetsItsShare) {
  const ModelConfig config = Config(8, 4, 16, 96, 1000);
  const ShardPlan plan = Plan(config, {.rank = 3, .ranks = 4, .virtual_shards = 8});
  EXPECT_EQ(plan.heads, (IndexRange{6, 8}));
  EXPECT_EQ(plan.kv_heads, (IndexRange{3, 4}));
  EXPECT_EQ(plan.Ffn(0), (IndexRange{72, 96}));
  EXPECT_EQ(plan.vocabulary, (IndexRange{750, 1000}));
  EXPECT_THAT(plan.attention_shards, ElementsAre(IndexRange{96, 112}, IndexRange{112, 128}));
  EXPECT_THAT(plan.ffn_shards[0], ElementsAre(IndexRange{72, 84}, IndexRange{84, 96}));
}

TEST(PlanShard, KvHeadsFewerThanRanksAreOnSeveral) {
  const ModelConfig config = Config(16, 2, 8, 64, 64);
  const IndexRange want[] = {{0, 1}, {0, 1}, {0, 1}, {0, 1}, {1, 2}, {1, 2}, {1, 2}, {1, 2}};
  for (uint32_t rank = 0; rank < 8; ++rank) {
    const ShardPlan plan = Plan(config, {.rank = rank, .ranks = 8});
    EXPECT_EQ(plan.kv_heads, want[rank]);
    for (size_t head = plan.heads.begin; head < plan.heads.end; ++head) {
      EXPECT_EQ(head / (config.heads / config.kv_heads), plan.kv_heads.begin) << "of head " << head;
    }
  }
}

TEST(PlanShard, BlocksAreNotCutAndSharesDifferByOneBlock) {
  // 11,008 is 43 blocks of 256: of the 7B Llama 2.
  std::vector<IndexRange> shards;
  for (uint32_t rank = 0; rank < 4; ++rank) {
    const ShardPlan plan =
        Plan(Config(32, 32, 128, 11008, 32000),
             {.rank = rank, .ranks = 4, .virtual_shards = 8, .attention_block = 256, .ffn_blocks = {256}});
    shards.insert(shards.end(), plan.ffn_shards[0].begin(), plan.ffn_shards[0].end());
  }
  ASSERT_EQ(shards.size(), 8u);
  for (const IndexRange& shard : shards) {
    EXPECT_EQ(shard.begin % 256, 0u);
    EXPECT_GE(shard.size(), 5 * 256u);
    EXPECT_LE(shard.size(), 6 * 256u);
  }
  EXPECT_EQ(shards.back().end, 11008u);
}

TEST(PlanShard, AProductOfFewBlocksHasFewerVirtualShards) {
  const ShardPlan plan = Plan(Config(2, 2, 64, 768, 64), {.virtual_shards = 8, .ffn_blocks = {256}});
  EXPECT_EQ(plan.attention_shards.size(), 8u);
  EXPECT_THAT(plan.ffn_shards[0], ElementsAre(IndexRange{0, 256}, IndexRange{256, 768}));
}

TEST(PlanShard, LayersOfUnequalWidthHaveShardsOfTheirOwn) {
  ModelConfig config = Config(4, 4, 16, 96, 64);
  config.layers = 3;
  SetFfnSizes({96, 32, 64}, config);
  const ShardPlan plan = Plan(config, {.rank = 1, .ranks = 2, .virtual_shards = 4});
  EXPECT_EQ(plan.Ffn(0), (IndexRange{48, 96}));
  EXPECT_EQ(plan.Ffn(1), (IndexRange{16, 32}));
  EXPECT_THAT(plan.ffn_shards[2], ElementsAre(IndexRange{32, 48}, IndexRange{48, 64}));
  EXPECT_NE(Message(PlanShard(config, {.ranks = 4, .ffn_blocks = {1, 32, 1}}).status()).find("width of 32"),
            std::string::npos);

  // Blocks are those of each layer's format.
  SetFfnSizes({512, 96, 40}, config);
  const ShardPlan mixed = Plan(config, {.rank = 0, .ranks = 2, .ffn_blocks = {256, 32, 1}});
  EXPECT_EQ(mixed.Ffn(0), (IndexRange{0, 256}));
  EXPECT_EQ(mixed.Ffn(1), (IndexRange{0, 32}));
  EXPECT_EQ(mixed.Ffn(2), (IndexRange{0, 20}));
}

TEST(PlanShard, StagesHaveRunsOfLayersAndTheirRanksShareEach) {
  const ModelConfig config = OfLayers(5, Config(8, 4, 16, 96, 1000));
  for (uint32_t rank = 0; rank < 6; ++rank) {
    SCOPED_TRACE(rank);
    const ShardPlan plan = Plan(config, {.rank = rank, .ranks = 6, .stages = 3, .virtual_shards = 4});
    const uint32_t stage = rank / 2;
    EXPECT_EQ(plan.stage, stage);
    EXPECT_EQ(plan.stages, 3u);
    EXPECT_EQ(plan.tensor_rank, rank % 2);
    EXPECT_EQ(plan.tensor_ranks, 2u);
    EXPECT_EQ(plan.is_first_stage(), stage == 0);
    EXPECT_EQ(plan.is_last_stage(), stage == 2);
    const IndexRange layers[] = {{0, 2}, {2, 4}, {4, 5}};
    EXPECT_EQ(plan.layers, layers[stage]);
    // Of each layer what a group of one stage has.
    const ShardPlan of_one = Plan(config, {.rank = rank % 2, .ranks = 2, .virtual_shards = 4});
    EXPECT_EQ(of_one.layers, (IndexRange{0, 5}));
    EXPECT_EQ(plan.heads, of_one.heads);
    EXPECT_EQ(plan.kv_heads, of_one.kv_heads);
    EXPECT_EQ(plan.vocabulary, of_one.vocabulary);
    EXPECT_EQ(plan.attention_shards, of_one.attention_shards);
    EXPECT_EQ(plan.ffn_shards, of_one.ffn_shards);
  }
}

TEST(LayersOfStage, CoverTheModelAndDifferByOneAtMostTheFirstHavingMore) {
  for (uint32_t layers = 1; layers <= 40; ++layers) {
    for (uint32_t stages = 1; stages <= layers; ++stages) {
      size_t end = 0;
      for (uint32_t stage = 0; stage < stages; ++stage) {
        const IndexRange own = LayersOfStage(layers, stage, stages);
        EXPECT_EQ(own.begin, end);
        EXPECT_EQ(own.size(), layers / stages + (stage < layers % stages ? 1 : 0));
        end = own.end;
      }
      EXPECT_EQ(end, layers);
    }
  }
}

// The virtual shards are the model's, and each rank's are neighbours that cover what it owns.
TEST(PlanShard, TheSameVirtualShardsWhateverTheNumberOfRanks) {
  const struct {
    ModelConfig config;
    size_t attention_block, ffn_block;
  } cases[] = {{Config(8, 8, 64, 1376, 100), 1, 1},
               {Config(16, 4, 32, 1001, 333), 32, 1},
               {Config(8, 2, 256, 11 * 256, 1024), 256, 256},
               {Config(8, 1, 128, 9 * 128, 8), 32, 128}};
  for (const auto& each : cases) {
    for (const uint32_t shards : {8u, 16u}) {
      const ShardOptions alone{
          .virtual_shards = shards, .attention_block = each.attention_block, .ffn_blocks = {each.ffn_block}};
      const ShardPlan whole = Plan(each.config, alone);
      for (const uint32_t ranks : {2u, 4u, 8u}) {
        ShardPlan all;
        all.ffn_shards.resize(1);
        size_t ffn_end = 0;
        for (uint32_t rank = 0; rank < ranks; ++rank) {
          ShardOptions options = alone;
          options.rank = rank;
          options.ranks = ranks;
          const ShardPlan plan = Plan(each.config, options);
          const auto add = [](std::vector<IndexRange>& to, const std::vector<IndexRange>& from) {
            to.insert(to.end(), from.begin(), from.end());
          };
          add(all.attention_shards, plan.attention_shards);
          add(all.ffn_shards[0], plan.ffn_shards[0]);
          EXPECT_EQ(plan.attention_shards.front().begin, plan.heads.begin * each.config.head_dim);
          EXPECT_EQ(plan.attention_shards.back().end, plan.heads.end * each.config.head_dim);
          EXPECT_EQ(plan.Ffn(0).begin, ffn_end);
          EXPECT_EQ(plan.vocabulary.begin, all.vocabulary.end);
          EXPECT_EQ(plan.attention_shards.size() * ranks, whole.attention_shards.size());
          ffn_end = plan.Ffn(0).end;
          all.vocabulary.end = plan.vocabulary.end;
        }
        EXPECT_EQ(all.attention_shards, whole.attention_shards) << ranks << " ranks of " << shards;
        EXPECT_EQ(all.ffn_shards, whole.ffn_shards) << ranks << " ranks of " << shards;
        EXPECT_EQ(ffn_end, each.config.ffn_size);
        EXPECT_EQ(all.vocabulary.end, each.config.vocab_size);
      }
    }
  }
}

// Of each tensor the rows, or the columns, of all ranks of its stages are those of the model, once each; of
// keys and values twice, where two ranks have the same KV head.
TEST(PlanShard, PartsOfATensorAreTheWholeOfItOnTheStagesThatUseIt) {
  ModelConfig config = OfLayers(3, Config(8, 2, 16, 64, 32));
  config.hidden_size = 24;
  for (const bool is_tied : {false, true}) {
    config.tied_embeddings = is_tied;
    for (const uint32_t stages : {1u, 2u, 3u}) {
      for (const TensorRequirement& tensor : RequiredTensors(config)) {
        SCOPED_TRACE(testing::Message() << tensor.name << ", " << stages << " stages, tied " << is_tied);
        std::vector<int> rows(tensor.shape[0]), columns(tensor.shape[tensor.shape.rank - 1]);
        int whole = 0, users = 0;
        for (uint32_t rank = 0; rank < 4 * stages; ++rank) {
          const ShardPlan plan = Plan(config, {.rank = rank, .ranks = 4 * stages, .stages = stages});
          if (!IsHere(plan, config, tensor.kind, tensor.layer)) continue;
          ++users;
          const TensorPart part = PartOf(plan, config, tensor.kind, tensor.layer);
          whole += !part.rows.has_value() && part.columns.empty();
          if (part.rows.has_value())
            for (size_t i = part.rows->begin; i < part.rows->end; ++i) ++rows.at(i);
          for (const IndexRange& shard : part.columns)
            for (size_t i = shard.begin; i < shard.end; ++i) ++columns.at(i);
        }
        const bool is_embedding = tensor.kind == TensorKind::kEmbedding;
        EXPECT_EQ(users, is_embedding && is_tied && stages > 1 ? 8 : 4) << "ranks of one stage, or of two";
        const bool is_cut_by_columns =
            tensor.kind == TensorKind::kAttentionOutput || tensor.kind == TensorKind::kDown;
        const bool is_kv = tensor.kind == TensorKind::kKey || tensor.kind == TensorKind::kValue;
        if (is_embedding || IsNorm(tensor.kind)) {
          EXPECT_EQ(whole, users);
        } else {
          EXPECT_EQ(whole, 0);
          EXPECT_THAT(is_cut_by_columns ? columns : rows, testing::Each(is_kv ? 2 : 1));
        }
      }
    }
  }
}

TEST(PlanShard, RefusesWhatCannotBeSharedOutWithTheNumbers) {
  const ModelConfig fine = Config(8, 8, 64, 512, 64);
  const struct {
    ModelConfig config;
    ShardOptions options;
    const char* message;
  } cases[] = {
      {fine, {.ranks = 3}, "3 ranks: not a power of two up to 64"},
      {fine, {.ranks = 128}, "128 ranks: not a power of two up to 64"},
      {fine,
       {.ranks = 2, .virtual_shards = 6},
       "6 virtual shards: not a power of two from the 2 ranks up to 64"},
      {fine,
       {.ranks = 4, .virtual_shards = 2},
       "2 virtual shards: not a power of two from the 4 ranks up to 64"},
      {fine, {.virtual_shards = 128}, "128 virtual shards"},
      {Config(6, 6, 64, 512, 64), {.ranks = 4}, "6 attention heads are not a multiple of 4 ranks"},
      {Config(12, 6, 64, 512, 64),
       {.ranks = 4},
       "6 KV heads are neither a multiple nor a divisor of 4 ranks"},
      {Config(8, 8, 64, 512, 64),
       {.ranks = 4, .attention_block = 256},
       "the 2 attention heads of a rank are 128 wide, not whole blocks of 256"},
      {Config(8, 8, 64, 768, 64),
       {.ranks = 4, .ffn_blocks = {256}},
       "the feed-forward width of 768 has 3 blocks of 256, as the file has down, for 4 ranks"},
      {Config(8, 8, 64, 512, 3), {.ranks = 4}, "a vocabulary of 3 for 4 ranks"},
      {fine, {.ranks = 4, .stages = 3}, "4 ranks are not a multiple of 3 pipeline stages"},
      {fine, {.ranks = 4, .stages = 0}, "4 ranks are not a multiple of 0 pipeline stages"},
      {fine, {.ranks = 2, .stages = 2}, "group.pipeline_parallel is 2, and the model has 1 layers"},
      {OfLayers(3, fine),
       {.ranks = 6, .stages = 2},
       "each of 2 pipeline stages: 3 ranks: not a power of two"},
      {OfLayers(3, Config(6, 6, 64, 512, 64)),
       {.ranks = 8, .stages = 2},
       "each of 2 pipeline stages: 6 attention heads are not a multiple of 4 ranks"},
  };
  for (const auto& each : cases) {
    const Status status = PlanShard(each.config, each.options).status();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(Reason(status), "cannot_shard");
    EXPECT_THAT(Message(status), HasSubstr(each.message));
  }
}

}  // namespace
}  // namespace terrace
