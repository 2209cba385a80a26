#include "tools/plan/model_split.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/optimize/model_shapes.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"
#include "worker/model/model_testing.h"
#include "worker/parallel/local_communicator.h"

namespace terrace {
namespace {

using testing::HasSubstr;

// Wide enough for four ranks in every format, with KV heads for two.
ModelConfig Config(bool is_tied) {
  ModelConfig config = RandomModel::SmallConfig();
  config.layers = 3;
  config.head_dim = 256;
  config.tied_embeddings = is_tied;
  SetFfnSizes({5 * 256, 4 * 256, 6 * 256}, config);
  return config;
}

ModelSplit Split(const ModelShape& shape, const ParallelDegrees& degrees) {
  const auto split = SplitModel(shape, degrees);
  CHECK(split.ok(), Message(split.status()));
  return *split;
}

template <typename Member>
uint64_t Sum(const ModelSplit& split, Member member) {
  uint64_t sum = 0;
  for (const RankShare& share : split.ranks) sum += share.*member;
  return sum;
}

TEST(SplitModel, EveryRankHasWhatItLoads) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_K, DType::kInt4G128}) {
    for (const bool is_tied : {false, true}) {
      const RandomModel model(dtype, /*seed=*/1, Config(is_tied));
      const ModelShape shape = ShapeOf(model.config, model).value();
      for (const uint32_t ranks : {1u, 2u, 4u}) {
        SCOPED_TRACE(testing::Message() << Info(dtype).name << ", tied " << is_tied << ", ranks " << ranks);
        const ModelSplit split = Split(shape, {.tensor = ranks});
        const auto group = MakeLocalCommunicators(ranks, std::chrono::seconds(60));
        ThreadPool pool(1);
        for (uint32_t rank = 0; rank < ranks; ++rank) {
          const auto loaded = Transformer::Load(model.config, model, CpuOps(), pool,
                                                {.communicator = ranks > 1 ? group[rank].get() : nullptr});
          ASSERT_TRUE(loaded.ok()) << loaded.status();
          const RankShare& share = split.ranks[rank];
          EXPECT_EQ(share.weight_bytes() - (is_tied ? share.output_bytes : 0), (*loaded)->weight_bytes());
          EXPECT_EQ(share.kv_heads, (*loaded)->plan().kv_heads.size());
        }
      }
    }
  }
}

TEST(SplitModel, EveryRankHasItsPartOfEveryExpert) {
  for (const ModelConfig& config : WithSwitches(RandomModel::SmallConfig())) {
    const RandomModel model(DType::kQ4_K, /*seed=*/2, config);
    const ModelSplit whole = Split(ShapeOf(config, model).value(), {});
    EXPECT_EQ(whole.ranks[0].expert_bytes > 0, config.experts > 0) << config.family;
  }
  ModelConfig config = Config(/*is_tied=*/false);
  SetFfnSizes({1024, 1024, 1024}, config);
  config.family = "mixtral";
  config.experts = 5;
  config.experts_per_token = 2;
  const RandomModel model(DType::kQ8_0, /*seed=*/3, config);
  const ModelShape shape = ShapeOf(config, model).value();
  const uint64_t all = Split(shape, {}).ranks[0].expert_bytes;
  for (const uint32_t ranks : {2u, 4u}) {
    const ModelSplit split = Split(shape, {.tensor = ranks});
    EXPECT_EQ(Sum(split, &RankShare::expert_bytes), all);
    for (const RankShare& share : split.ranks) EXPECT_EQ(share.expert_bytes, all / ranks);
  }
}

// Of a tensor of a file by its name, "blk.3.ffn_up.weight" or "model.layers.3.mlp.up_proj.weight".
std::optional<uint32_t> LayerOf(std::string_view name) {
  for (const std::string_view before : {"blk.", "model.layers."}) {
    if (name.starts_with(before))
      return static_cast<uint32_t>(std::stoul(std::string(name.substr(before.size()))));
  }
  return std::nullopt;
}

// Bytes of a file's tensors, by what has them.
struct CountedBytes {
  std::vector<uint64_t> matrices, norms;  // by layer
  uint64_t embedding = 0, output = 0, final_norm = 0;
};

CountedBytes Count(const ModelFiles& files) {
  CountedBytes counted{.matrices = std::vector<uint64_t>(files.config.layers),
                       .norms = std::vector<uint64_t>(files.config.layers)};
  for (const WeightSource::Entry& entry : files.weights->entries()) {
    const bool is_norm = entry.tensor.shape.rank == 1;
    const bool is_embedding = entry.name.find("emb") != std::string::npos;
    const std::optional<uint32_t> layer = LayerOf(entry.name);
    uint64_t& bytes = layer.has_value() ? (is_norm ? counted.norms : counted.matrices).at(*layer)
                      : is_norm         ? counted.final_norm
                      : is_embedding    ? counted.embedding
                                        : counted.output;
    bytes += entry.tensor.bytes;
  }
  return counted;
}

// Layers of one model take different formats, so that the wrong ones would show.
TEST(SplitModel, AStageHasTheBytesThatTheFileHasOfItsLayers) {
  for (const bool is_gguf : {false, true}) {
    ModelToSynthesize request;
    request.path = Concat(testing::TempDir(), "split_model", is_gguf ? ".gguf" : "");
    std::filesystem::remove_all(request.path);
    request.format = is_gguf ? ModelFormat::kGguf : ModelFormat::kSafetensors;
    request.config = ChangeShape(FindModelShape("135m").value(), {.layers = 5,
                                                                  .hidden = 256,
                                                                  .heads = 4,
                                                                  .kv_heads = 2,
                                                                  .head_dim = 128,
                                                                  .ffn = 512,
                                                                  .vocab = 300,
                                                                  .context = 64,
                                                                  .tied = is_gguf})
                         .value();
    request.dtype = is_gguf ? DType::kQ4_K : DType::kF16;
    request.more_bits = is_gguf;
    request.text = ByteLevelText();
    const auto written = Synthesize(request);
    ASSERT_TRUE(written.ok()) << written.status();
    const CountedBytes file = Count(OpenTestModel(request.path));
    EXPECT_EQ(std::ranges::min(file.matrices) < std::ranges::max(file.matrices), is_gguf);
    const ModelShape shape = ReadModelShape(request.path, std::nullopt).value();
    for (const uint32_t tensor : {1u, 2u}) {
      for (uint32_t stages = 1; stages <= 5; ++stages) {
        const ModelSplit split = Split(shape, {.tensor = tensor, .pipeline = stages});
        ASSERT_EQ(split.ranks.size(), tensor * stages);
        uint32_t layer = 0;  // the first of the stage
        for (uint32_t stage = 0; stage < stages; ++stage) {
          SCOPED_TRACE(testing::Message()
                       << request.path << ", " << tensor << " x " << stages << ", stage " << stage);
          const bool is_last = stage + 1 == stages;
          const uint32_t end = layer + (5 - layer + stages - stage - 1) / (stages - stage);
          uint64_t matrices = 0, norms = is_last ? file.final_norm : 0;
          for (uint32_t each = layer; each < end; ++each) {
            matrices += file.matrices[each];
            norms += file.norms[each];
          }
          uint64_t layer_bytes = 0, output_bytes = 0;
          for (uint32_t rank = 0; rank < tensor; ++rank) {
            const RankShare& share = split.ranks[stage * tensor + rank];
            EXPECT_EQ(share.stage, stage);
            EXPECT_EQ(share.rank, rank);
            EXPECT_EQ(share.layers, (IndexRange{.begin = layer, .end = end}));
            EXPECT_EQ(share.norm_bytes, norms) << "each rank has all of them";
            EXPECT_EQ(share.embedding_bytes, stage == 0 ? file.embedding : 0) << "and all of this";
            layer_bytes += share.layer_bytes;
            output_bytes += share.output_bytes;
          }
          EXPECT_EQ(layer_bytes, matrices);
          EXPECT_EQ(output_bytes, !is_last ? 0 : is_gguf ? file.embedding : file.output);
          layer = end;
        }
        EXPECT_EQ(layer, 5u);
      }
    }
  }
}

TEST(SplitModel, RanksHaveTheWholeModelTogetherAndNothingTwiceButWhatIsOnSeveral) {
  for (const bool is_tied : {false, true}) {
    const ModelConfig config = Config(is_tied);
    const ModelShape shape = ShapeOf(config, DType::kQ8_0).value();
    const ModelSplit whole = Split(shape, {});
    for (const uint32_t tensor : {1u, 2u, 4u}) {
      for (const uint32_t pipeline : {1u, 2u, 3u}) {
        SCOPED_TRACE(testing::Message() << "tied " << is_tied << ", " << tensor << " x " << pipeline);
        const ModelSplit split = Split(shape, {.tensor = tensor, .pipeline = pipeline});
        ASSERT_EQ(split.ranks.size(), tensor * pipeline);
        // Two KV heads: from four ranks on each is on two of them, with the keys' and values' rows.
        const uint64_t again = tensor == 4 ? 2 * 2 * uint64_t{config.layers} * config.head_dim : 0;  // rows
        const uint64_t row_bytes = uint64_t{config.hidden_size} / 32 * 34;
        EXPECT_EQ(Sum(split, &RankShare::layer_elements),
                  whole.ranks[0].layer_elements + again * config.hidden_size);
        EXPECT_EQ(Sum(split, &RankShare::layer_bytes), whole.ranks[0].layer_bytes + again * row_bytes);
        EXPECT_EQ(Sum(split, &RankShare::output_bytes), whole.ranks[0].output_bytes);
        EXPECT_EQ(Sum(split, &RankShare::output_elements), whole.ranks[0].output_elements);
        EXPECT_EQ(Sum(split, &RankShare::embedding_bytes), tensor * whole.ranks[0].embedding_bytes);
        EXPECT_EQ(Sum(split, &RankShare::norm_bytes), tensor * whole.ranks[0].norm_bytes);
        uint64_t kv_bytes = 0, layers = 0;
        for (const RankShare& share : split.ranks) {
          kv_bytes += KvBytesPerToken(share, config, KvDType::kF16);
          layers += share.layers.size();
        }
        EXPECT_EQ(kv_bytes, KvBytesPerToken(whole.ranks[0], config, KvDType::kF16) * (tensor == 4 ? 2 : 1));
        EXPECT_EQ(layers, tensor * config.layers);
      }
    }
  }
}

TEST(SplitModel, StagesAreRunsOfLayersAndTheFirstOnesHaveTheRest) {
  ModelConfig config = Config(false);
  config.layers = 8;
  config.ffn_sizes.clear();
  const ModelShape shape = ShapeOf(config, DType::kF16).value();
  for (uint32_t stages = 1; stages <= config.layers; ++stages) {
    size_t end = 0;
    for (const RankShare& share : Split(shape, {.pipeline = stages}).ranks) {
      EXPECT_EQ(share.layers.begin, end) << stages;
      EXPECT_EQ(share.layers.size(), 8 / stages + (share.stage < 8 % stages ? 1 : 0)) << stages;
      EXPECT_EQ(share.embedding_bytes > 0, share.stage == 0);
      EXPECT_EQ(share.output_bytes > 0, share.stage + 1 == stages);
      end = share.layers.end;
    }
    EXPECT_EQ(end, 8u);
  }
}

TEST(SplitModel, NoRankHasMoreWithMoreRanks) {
  const ModelShape shape = ShapeOf(Config(false), DType::kF16).value();
  for (const uint32_t tensor : {1u, 2u}) {
    for (const uint32_t pipeline : {1u, 2u, 3u}) {
      uint64_t most = 0;
      for (const RankShare& share : Split(shape, {.tensor = 2 * tensor, .pipeline = pipeline}).ranks)
        most = std::max(most, share.layer_bytes);
      uint64_t most_before = 0;
      for (const RankShare& share : Split(shape, {.tensor = tensor, .pipeline = pipeline}).ranks)
        most_before = std::max(most_before, share.layer_bytes);
      EXPECT_LT(most, most_before) << tensor << " x " << pipeline;
    }
  }
}

TEST(SplitModel, RefusesAsRanksDoWithTheNumbers) {
  const ModelShape shape = ShapeOf(Config(false), DType::kQ4_K).value();
  const struct {
    ParallelDegrees degrees;
    const char* error;
  } cases[] = {{{.tensor = 3}, "3 ranks: not a power of two"},
               {{.tensor = 8}, "4 attention heads are not a multiple of 8 ranks"},
               {{.pipeline = 4}, "3 layers for 4 pipeline stages"}};
  for (const auto& each : cases) {
    const Status status = SplitModel(shape, each.degrees).status();
    EXPECT_EQ(Reason(status), "cannot_shard");
    EXPECT_THAT(Message(status), HasSubstr(each.error));
  }
}

}  // namespace
}  // namespace terrace
