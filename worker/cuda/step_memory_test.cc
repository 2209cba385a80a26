#include "worker/cuda/step_memory.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "gtest/gtest.h"
#include "kernels/gemm/tile_gemm_gpu.h"
#include "kernels/gemm/wide_gemm_gpu.h"
#include "worker/engine/device_rules.h"

namespace terrace {
namespace {

constexpr DeviceLimits kLimits{.max_sequences = 24, .max_step_tokens = 700, .context_length = 4096};

ModelConfig Dense() {
  ModelConfig config;
  config.hidden_size = 512;
  config.ffn_size = 1536;
  config.layers = 2;
  config.heads = 8;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.vocab_size = 4096;
  return config;
}

ModelConfig Mixture() {
  ModelConfig config = Dense();
  config.experts = 12;
  config.experts_per_token = 3;
  return config;
}

// As the layers of a model and its head are, of a format.
StepMatrices MatricesOf(const ModelConfig& config, GpuFormat format, bool has_row_scales = false) {
  const uint32_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  StepMatrices out{.head_rows = RowsOfWholeTiles(config.vocab_size)};
  for (const auto& [rows, columns] : {std::pair(q + 2 * kv, config.hidden_size),
                                      {config.hidden_size, q},
                                      {2 * config.ffn_size, config.hidden_size},
                                      {config.hidden_size, config.ffn_size}}) {
    out.Add({.format = format, .rows = rows, .columns = columns, .has_row_scales = has_row_scales});
  }
  return out;
}

struct Case {
  const char* name;
  ModelConfig config;
  GpuFormat format = GpuFormat::kBF16;
  bool is_of_group = false, has_logits = true;  // of a group, of 4
  bool has_row_scales = false;

  StepMemoryOptions options() const {
    StepMemoryOptions out{.config = config,
                          .limits = kLimits,
                          .matrices = MatricesOf(config, format, has_row_scales),
                          .is_of_group = is_of_group,
                          .has_logits = has_logits,
                          .sampling_bytes = 12345};
    if (is_of_group) out.matrices.head_rows /= 4;
    return out;
  }
};

// Whose widest matrix reads what a feed-forward, the residual stream or attention makes.
ModelConfig WithWidths(uint32_t ffn, uint32_t hidden, uint32_t heads) {
  ModelConfig config = Dense();
  config.ffn_size = ffn;
  config.hidden_size = hidden;
  config.heads = heads;
  return config;
}

std::vector<Case> Cases() {
  ModelConfig with_post_norms = Dense();
  with_post_norms.has_post_norms = true;
  ModelConfig with_odd_vocabulary = Dense();
  with_odd_vocabulary.vocab_size = 4099;
  return {{.name = "bf16", .config = Dense()},
          {.name = "W4", .config = Dense(), .format = GpuFormat::kW4},
          {.name = "INT8", .config = Dense(), .format = GpuFormat::kW8, .has_row_scales = true},
          {.name = "FP8", .config = Dense(), .format = GpuFormat::kE4M3},
          {.name = "FP8, wide hidden", .config = WithWidths(256, 1024, 8), .format = GpuFormat::kE4M3},
          {.name = "FP8, wide queries", .config = WithWidths(256, 512, 32), .format = GpuFormat::kE4M3},
          {.name = "experts", .config = Mixture(), .format = GpuFormat::kW8},
          {.name = "norms behind sublayers", .config = with_post_norms},
          {.name = "a vocabulary of no whole tiles", .config = with_odd_vocabulary},
          {.name = "rank 0", .config = Dense(), .is_of_group = true},
          {.name = "rank 1", .config = Dense(), .is_of_group = true, .has_logits = false}};
}

struct Array {
  const char* name;
  uint64_t begin, bytes;
};

// What kernels read and write of each array in the largest step.
std::vector<Array> ArraysOf(const StepMemoryOptions& o, const StepMemory& memory) {
  const ModelConfig& c = o.config;
  const uint64_t tokens = 700, rows = 512, q = uint64_t{c.heads} * c.head_dim,
                 kv = uint64_t{c.kv_heads} * c.head_dim, pairs = tokens * c.experts_per_token;
  const uint32_t most_rows = std::max(2 * c.ffn_size, o.matrices.head_rows);
  const StepMemory::Arrays& at = memory.at;
  std::vector<Array> arrays = {
      {"hidden", at.hidden, tokens * c.hidden_size * 4},
      {"normed", at.normed, tokens * c.hidden_size * 2},
      {"squares", at.squares, uint64_t{8} * (c.hidden_size / kTileRows) * 4},
      {"qkv", at.qkv, tokens * (q + 2 * kv) * 2},
      {"attended", at.attended, tokens * q * 2},
      {"gate", at.gate, (c.experts > 0 ? pairs : tokens) * c.ffn_size * 2},
      {"last_normed", at.last_normed, rows * c.hidden_size * 2},
      {"logits", at.logits,
       rows * (o.has_logits ? RowsOfWholeTiles(c.vocab_size) : o.matrices.head_rows) * 4},
      {"partials", at.partials, kDevicePartialFloats * 4},
      {"arrived", at.arrived, tokens * c.kv_heads * 4},
      {"tile_arrived", at.tile_arrived,
       std::max(TileGemmCounters(most_rows, 512), WideGemmCounters(most_rows, 512)) * 4},
      {"code_scales", at.code_scales, tokens * 4}};
  if (c.has_post_norms) arrays.push_back({"sublayer", at.sublayer, tokens * c.hidden_size * 4});
  if (c.experts == 0) arrays.push_back({"gate_up", at.gate_up, tokens * 2 * c.ffn_size * 2});
  if (c.experts > 0) arrays.push_back({"expert_rows", at.expert_rows, pairs * c.hidden_size * 4});
  if (o.is_of_group) arrays.push_back({"gathered", at.gathered, rows * c.vocab_size * 4});
  const bool takes_codes = o.matrices.most_code_columns > 0, is_bf16 = o.matrices.most_elements == 0;
  const uint64_t widest = std::max<uint64_t>({c.hidden_size, c.ffn_size, q});
  if (takes_codes) arrays.push_back({"codes", at.codes, tokens * widest});
  if (!is_bf16)
    arrays.push_back({"dequantized", at.dequantized, uint64_t{2} * c.ffn_size * c.hidden_size * 2});
  return arrays;
}

TEST(StepMemory, EveryArrayHasRoomForTheLargestStepAndNoneLiesInAnother) {
  for (const Case& c : Cases()) {
    const StepMemoryOptions options = c.options();
    const StepMemory memory = PlanStepMemory(options);
    std::vector<Array> arrays = ArraysOf(options, memory);
    std::ranges::sort(arrays, {}, &Array::begin);
    arrays.push_back({"the end", memory.buffers[StepMemory::kActivations].bytes, 0});
    for (size_t i = 0; i + 1 < arrays.size(); ++i) {
      EXPECT_EQ(arrays[i].begin % 256, 0u) << c.name << ": " << arrays[i].name;
      EXPECT_LE(arrays[i].begin + arrays[i].bytes, arrays[i + 1].begin)
          << c.name << ": " << arrays[i].name << ", then " << arrays[i + 1].name;
    }
  }
}

// FP8 and INT8 alone are multiplied by codes: elsewhere there is no array of them.
TEST(StepMemory, ActivationsHaveCodesWhereSomeMatrixTakesThem) {
  for (const Case& c : Cases()) {
    const bool takes_codes = c.format == GpuFormat::kE4M3 || c.has_row_scales;
    const StepMemory::Arrays at = PlanStepMemory(c.options()).at;
    EXPECT_EQ(at.code_scales > at.codes, takes_codes) << c.name;
  }
}

TEST(StepMemory, ItsBytesAreThoseOfEveryBufferInPagesOfTheDevice) {
  constexpr uint64_t kPage = uint64_t{2} << 20;
  const std::vector<std::string> names = {"activations",  "RoPE tables", "step",
                                          "block tables", "sampling",    "results"};
  for (const Case& c : Cases()) {
    const StepMemory memory = PlanStepMemory(c.options());
    ASSERT_EQ(memory.buffers.size(), names.size());
    uint64_t exact = 0;
    for (size_t i = 0; i < names.size(); ++i) {
      EXPECT_EQ(memory.buffers[i].what, names[i]);
      EXPECT_GT(memory.buffers[i].bytes, 0u) << names[i];
      exact += memory.buffers[i].bytes;
    }
    EXPECT_EQ(memory.buffers[StepMemory::kSampling].bytes, 12345u);
    EXPECT_EQ(memory.bytes() % kPage, 0u) << c.name;
    EXPECT_GE(memory.bytes(), exact) << c.name;
    EXPECT_LT(memory.bytes(), exact + names.size() * kPage) << c.name;
  }
}

TEST(StepMemory, WindowsWithAnglesOfTheirOwnHaveASecondTable) {
  ModelConfig config = Dense();
  const auto rope = [&] {
    return PlanStepMemory({.config = config, .limits = kLimits, .matrices = {}})
        .buffers[StepMemory::kRope]
        .bytes;
  };
  const uint64_t one = rope();
  EXPECT_EQ(one, 4096u * 64 * sizeof(float));
  config.window_rope_base = 10000;
  EXPECT_EQ(rope(), 2 * one);
}

// What ScratchBytes counts on, before the blocks are chosen and for whichever rank.
TEST(StepMemory, TheSmallestBlocksAndRank0TakeTheMost) {
  const Case of_rank0{.name = "", .config = Dense(), .is_of_group = true},
      of_rank1{.name = "", .config = Dense(), .is_of_group = true, .has_logits = false};
  EXPECT_GT(PlanStepMemory(of_rank0.options()).bytes(), PlanStepMemory(of_rank1.options()).bytes());
  StepMemoryOptions options = of_rank0.options();
  const StepMemory smallest = PlanStepMemory(options);
  EXPECT_EQ(smallest.table_pitch, 4096u / kLeastBlockTokens);
  for (uint32_t block = 2 * kLeastBlockTokens; block <= 512; block *= 2) {
    options.block_tokens = block;
    const StepMemory memory = PlanStepMemory(options);
    EXPECT_EQ(memory.table_pitch, 4096u / block);
    EXPECT_LE(memory.bytes(), smallest.bytes());
  }
}

}  // namespace
}  // namespace terrace
