// What the ranks of a group on devices have of a model: all of it between them, nothing twice, cut where
// kernels and formats let it be.
#include "worker/engine/device_shard.h"

#include <functional>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant/weight_values.h"
#include "worker/model/found_tensors.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// Four ranks can share it out in every format: an attention's output of four blocks of 256, a feed-forward
// width of five; KV heads for two of them.
ModelConfig WideConfig() {
  ModelConfig config = RandomModel::SmallConfig(/*vocab_size=*/128);
  config.head_dim = 256;
  config.ffn_size = 5 * 256;
  config.tied_embeddings = false;
  return config;
}

ShardPlan PlanOf(const RandomModel& model, uint32_t rank, uint32_t ranks) {
  const auto plan = PlanDeviceShard(model.config, model, {.rank = rank, .ranks = ranks});
  CHECK(plan.ok(), Message(plan.status()));
  return *plan;
}

// On every rank: each chooses the experts of all tokens, and has a part of each expert.
bool IsWhole(TensorKind kind) {
  return IsNorm(kind) || kind == TensorKind::kEmbedding || kind == TensorKind::kRouter;
}
bool IsOfKv(TensorKind kind) {
  return kind == TensorKind::kKey || kind == TensorKind::kValue || kind == TensorKind::kKeyBias ||
         kind == TensorKind::kValueBias;
}
bool IsCutByColumns(TensorKind kind) {
  return kind == TensorKind::kAttentionOutput || kind == TensorKind::kDown;
}

// Adds what `part` has of `whole` to `counts` [rows, blocks of a row], and compares its corners.
void Count(const WeightMatrix& whole, const WeightMatrix& part, std::vector<uint32_t>& counts) {
  const DTypeInfo& info = Info(whole.dtype);
  const size_t at = static_cast<size_t>(part.data - whole.data), blocks = whole.columns / info.block_elements;
  const size_t row = at / whole.RowPitch(), block = at % whole.RowPitch() / info.block_bytes;
  ASSERT_EQ(at % whole.RowPitch() % info.block_bytes, 0u) << "it begins within a block";
  ASSERT_EQ(part.columns % info.block_elements, 0u) << "it ends within a block";
  ASSERT_EQ(part.RowPitch(), whole.RowPitch());
  for (size_t r = 0; r < part.rows; ++r) {
    for (size_t b = 0; b < part.columns / info.block_elements; ++b)
      ++counts.at((row + r) * blocks + block + b);
  }
  const size_t column = block * info.block_elements;
  for (const size_t r : {size_t{0}, part.rows - 1}) {
    for (const size_t c : {size_t{0}, part.columns - 1})
      ASSERT_EQ(WeightAt(part, r, c), WeightAt(whole, row + r, column + c));
  }
}

// Adds to `counts` [elements] those of a bias that the rank has.
void CountBias(const TensorRequirement& bias, const ModelConfig& config, const ShardPlan& plan,
               std::vector<uint32_t>& counts) {
  const IndexRange elements = ElementsOfBias(plan, config, bias.kind, bias.layer);
  for (size_t i = elements.begin; i < elements.end; ++i) ++counts.at(i);
}

void ExpectSharedOut(const RandomModel& model) {
  const auto tensors = FindTensors(model.config, model);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  for (const uint32_t ranks : {1u, 2u, 4u}) {
    std::vector<ShardPlan> plans;
    for (uint32_t rank = 0; rank < ranks; ++rank) plans.push_back(PlanOf(model, rank, ranks));
    for (const auto& [required, tensor] : *tensors) {
      SCOPED_TRACE(Concat(required.name, ", ", ranks, " ranks"));
      const WeightMatrix whole = MatrixOf(tensor);
      std::vector<uint32_t> counts(whole.rows * whole.columns / Info(whole.dtype).block_elements);
      for (const ShardPlan& plan : plans) {
        if (IsBias(required.kind)) {
          CountBias(required, model.config, plan, counts);
          continue;
        }
        const WeightMatrix part = PartOfRank(required.kind, required.layer, whole, model.config, plan);
        Count(whole, part, counts);
        if (IsCutByColumns(required.kind)) {
          EXPECT_EQ(part.columns % kDeviceColumns, 0u);
          EXPECT_EQ(part.rows, whole.rows);
        } else {
          EXPECT_EQ(part.columns, whole.columns);
          EXPECT_TRUE(IsWhole(required.kind) || part.rows % kDeviceRows == 0);
        }
      }
      const uint32_t kv_heads = model.config.kv_heads;
      const uint32_t times = IsWhole(required.kind)                      ? ranks
                             : IsOfKv(required.kind) && ranks > kv_heads ? ranks / kv_heads
                                                                         : 1;
      EXPECT_EQ(counts, std::vector<uint32_t>(counts.size(), times));
    }
  }
}

TEST(DeviceShard, PartsOfAllRanksAreTheModelAndNoneIsCutWhereKernelsCannot) {
  for (const DTypeInfo& info : kDTypes) {
    SCOPED_TRACE(info.name);
    ExpectSharedOut(RandomModel(info.dtype, /*seed=*/3, WideConfig()));
  }
}

TEST(DeviceShard, WhatOtherFamiliesHaveIsSharedOutToo) {
  for (const ModelConfig& config : WithSwitches(WideConfig())) {
    for (const DType dtype : {DType::kBF16, DType::kQ4_K}) {
      SCOPED_TRACE(Concat(config.family, ", ", Info(dtype).name));
      ExpectSharedOut(RandomModel(dtype, /*seed=*/7, config));
    }
  }
}

// What is cut has the shapes of the rank's own model, and the rest those of all of it.
void ExpectShapesOfOwnModel(const RandomModel& model) {
  const auto tensors = FindTensors(model.config, model);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  for (const uint32_t ranks : {1u, 2u, 4u}) {
    uint32_t heads = 0, ffn_size = 0;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      const ShardPlan plan = PlanOf(model, rank, ranks);
      const ModelConfig own = ConfigOfRank(model.config, plan);
      heads += own.heads;
      ffn_size += own.ffn_size;
      EXPECT_EQ(own.heads % own.kv_heads, 0u);
      EXPECT_EQ(own.vocab_size, model.config.vocab_size);
      for (const auto& [required, tensor] : *tensors) {
        SCOPED_TRACE(Concat(required.name, ", ", ranks, " ranks"));
        const Shape shape = TensorShape(own, required.kind, required.layer);
        if (IsBias(required.kind)) {
          EXPECT_EQ(ElementsOfBias(plan, model.config, required.kind, required.layer).size(), shape[0]);
          continue;
        }
        const WeightMatrix part =
            PartOfRank(required.kind, required.layer, MatrixOf(tensor), model.config, plan);
        EXPECT_EQ(part.columns, shape[shape.rank - 1]);
        if (shape.rank == 2) {
          EXPECT_EQ(part.rows * (required.kind == TensorKind::kOutput ? ranks : 1), shape[0]);
        }
      }
    }
    EXPECT_EQ(heads, model.config.heads);
    EXPECT_EQ(ffn_size, model.config.ffn_size);
  }
}

TEST(DeviceShard, TheRankRunsAModelOfTheSizesOfItsParts) {
  ExpectShapesOfOwnModel(RandomModel(DType::kQ4_K, /*seed=*/4, WideConfig()));
  for (const ModelConfig& config : WithSwitches(WideConfig())) {
    SCOPED_TRACE(config.family);
    ExpectShapesOfOwnModel(RandomModel(DType::kQ4_K, /*seed=*/8, config));
  }
}

// 1,376 columns for each of eight ranks would be 21.5 pieces of a kernel.
TEST(DeviceShard, AFeedForwardWidthIsCutIntoWholePiecesOfKernelsAlsoWhereRanksThenDiffer) {
  ModelConfig config = RandomModel::SmallConfig(/*vocab_size=*/128);
  config.heads = config.kv_heads = 8;
  config.ffn_size = 11008;
  config.layers = 1;
  const RandomModel model(DType::kBF16, /*seed=*/5, config);
  size_t end = 0;
  for (uint32_t rank = 0; rank < 8; ++rank) {
    const IndexRange ffn = PlanOf(model, rank, 8).Ffn(0);
    EXPECT_EQ(ffn.begin, end);
    EXPECT_EQ(ffn.size() % kDeviceColumns, 0u);
    EXPECT_GE(ffn.size(), 21 * kDeviceColumns);
    EXPECT_LE(ffn.size(), 22 * kDeviceColumns);
    end = ffn.end;
  }
  EXPECT_EQ(end, 11008u);
}

TEST(DeviceShard, WhatKernelsCannotCutIsRefusedWithTheNumbers) {
  const struct {
    const char* name;
    std::function<void(ModelConfig&)> change;
    uint32_t ranks;
    const char* says;
  } cases[] = {
      {"vocabulary", [](ModelConfig& config) { config.vocab_size = 112; }, 2,
       "a vocabulary of 112 for 2 ranks; on GPUs multiples of 16 for each are"},
      {"vocabulary with an added token", [](ModelConfig& config) { config.vocab_size = 129; }, 4,
       "a vocabulary of 129 for 4 ranks; on GPUs multiples of 16 for each are"},
      {"feed-forward width", [](ModelConfig& config) { config.ffn_size = 5 * 32; }, 2,
       "a feed-forward size of 160; on GPUs multiples of 64 are"},
      {"layers",
       [](ModelConfig& config) {
         SetFfnSizes({256, 512}, config);
       },
       2, "unequal feed-forward sizes"},
      {"columns of a head", [](ModelConfig& config) { config.head_dim = 32; }, 4,
       "on GPUs, which take 64 columns together: the 1 attention heads of a rank are 32 wide, not whole "
       "blocks "
       "of 64"},
      {"pieces of a width", [](ModelConfig& config) { config.ffn_size = 64; }, 2,
       "the feed-forward width of 64 has 1 blocks of 64"},
      {"heads", [](ModelConfig&) {}, 8, "4 attention heads are not a multiple of 8 ranks"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    ModelConfig config = WideConfig();
    c.change(config);
    const RandomModel model(DType::kBF16, /*seed=*/6, config);
    const Status refused = PlanDeviceShard(config, model, {.ranks = c.ranks}).status();
    EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(Reason(refused), "cannot_shard");
    EXPECT_THAT(Message(refused), HasSubstr(c.says));
  }
}

TEST(DeviceShard, RanksOfOneMachineTakeADeviceEachAndOthersTheFirst) {
  const struct {
    uint32_t rank;
    bool shares_machine;
    uint32_t devices, want;
  } cases[] = {{0, false, 1, 0}, {0, false, 8, 0}, {3, false, 8, 0},
               {0, true, 4, 0},  {3, true, 4, 3},  {3, true, 1, 0}};
  for (const auto& c : cases) {
    const auto device = DeviceOfRank({.rank = c.rank, .shares_machine = c.shares_machine}, c.devices);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_EQ(*device, c.want);
  }
  const Status refused = DeviceOfRank({.rank = 2, .shares_machine = true}, 2).status();
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(refused), "no_device");
  EXPECT_THAT(Message(refused), HasSubstr("takes device 2, and this process is shown 2 devices"));
}

}  // namespace
}  // namespace terrace
