#include "worker/cuda/step_memory.h"

#include <algorithm>

#include "kernels/gemm/gpu_gemm.h"
#include "kernels/gemm/tile_gemm_gpu.h"
#include "kernels/gemm/wide_gemm_gpu.h"
#include "worker/engine/device_rules.h"

namespace terrace {
namespace {

constexpr uint64_t kPageBytes = uint64_t{2} << 20;

}  // namespace

void StepMatrices::Add(const GpuMatrix& matrix) {
  most_rows = std::max(most_rows, matrix.rows);
  if (matrix.format != GpuFormat::kBF16) {
    most_elements = std::max(most_elements, uint64_t{matrix.rows} * matrix.columns);
  }
  if (matrix.format == GpuFormat::kE4M3 || matrix.has_row_scales) {
    most_code_columns = std::max(most_code_columns, matrix.columns);
  }
}

StepMemory PlanStepMemory(const StepMemoryOptions& o) {
  const ModelConfig& c = o.config;
  const uint64_t tokens = StepTokens(o.limits), rows = LogitRows(o.limits);
  const uint64_t hidden = c.hidden_size, q = uint64_t{c.heads} * c.head_dim,
                 kv = uint64_t{c.kv_heads} * c.head_dim;
  const uint64_t pairs = tokens * c.experts_per_token, plain_tokens = c.experts == 0 ? tokens : 0;
  const uint32_t most_rows = std::max(o.matrices.most_rows, o.matrices.head_rows);
  const uint64_t arrived = tokens * c.kv_heads,
                 tile_arrived = std::max(TileGemmCounters(most_rows, kMostTileTokens),
                                         WideGemmCounters(most_rows, kMostWideSplitTokens));
  ArrayLayout layout;
  const StepMemory::Arrays at = {
      .hidden = layout.Add<float>(tokens * hidden),
      .sublayer = layout.Add<float>(c.has_post_norms ? tokens * hidden : 0),
      .normed = layout.Add<uint16_t>(tokens * hidden),
      .squares = layout.Add<float>(kMostNormTokens * hidden / kTileRows),
      .qkv = layout.Add<uint16_t>(tokens * (q + 2 * kv)),
      .attended = layout.Add<uint16_t>(tokens * q),
      .gate_up = layout.Add<uint16_t>(plain_tokens * 2 * c.ffn_size),
      .gate = layout.Add<uint16_t>((plain_tokens + pairs) * c.ffn_size),
      .experts = ExpertRoutesLayout({.tokens = tokens,
                                     .experts = c.experts,
                                     .per_token = c.experts_per_token,
                                     .router_rows = RowsOfWholeTiles(c.experts)},
                                    layout),
      .expert_rows = layout.Add<float>(pairs * hidden),
      .last_normed = layout.Add<uint16_t>(rows * hidden),
      .logits =
          layout.Add<float>(rows * (o.has_logits ? RowsOfWholeTiles(c.vocab_size) : o.matrices.head_rows)),
      .gathered = layout.Add<float>(o.is_of_group ? rows * c.vocab_size : 0),
      .partials = layout.Add<float>(kDevicePartialFloats),
      .arrived = layout.Add<uint32_t>(arrived),
      .tile_arrived = layout.Add<uint32_t>(tile_arrived),
      .dequantized = layout.Add<uint16_t>(o.matrices.most_elements),
      .codes = layout.Add<uint8_t>(tokens * o.matrices.most_code_columns),
      .code_scales = layout.Add<float>(tokens)};
  const auto padded = static_cast<uint32_t>(tokens) + kMostGraphTokens;
  const StepLayout largest(padded, padded, static_cast<uint32_t>(tokens));
  const uint32_t pitch = (o.limits.context_length + o.block_tokens - 1) / o.block_tokens;
  const uint64_t angles = uint64_t{o.limits.context_length} * c.head_dim;  // cosines and sines
  return {.at = at,
          .arrived_count = arrived,
          .tile_arrived_count = tile_arrived,
          .table_pitch = pitch,
          .buffers = {{// as enum Buffer
                       {"activations", layout.bytes()},
                       {"RoPE tables", (c.window_rope_base > 0 ? 2 : 1) * angles * sizeof(float)},
                       {"step", largest.adjustments + kMostLogitAdjustments * sizeof(GpuLogitAdjustment)},
                       {"block tables", (uint64_t{o.limits.max_sequences} + 1) * pitch * sizeof(int32_t)},
                       {"sampling", o.sampling_bytes},
                       {"results", padded * sizeof(GpuSampleResult)}}}};
}

uint64_t StepMemory::bytes() const {
  uint64_t sum = 0;
  for (const Size& buffer : buffers) sum += (buffer.bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  return sum;
}

}  // namespace terrace
