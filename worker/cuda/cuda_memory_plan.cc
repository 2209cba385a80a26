#include <algorithm>
#include <cstring>

#include "base/machine.h"
#include "kernels/gemm/wide_gemm_gpu.h"
#include "kernels/rope/rope_table.h"
#include "kernels/sample/sample_cuda.h"
#include "worker/cuda/cuda_transformer_impl.h"

namespace terrace {

namespace {

// What a layer's feed-forward, or its experts, takes for a token.
uint64_t FfnBytes(const ModelConfig& c) {
  if (c.experts == 0) return 6ull * c.ffn_size;
  return c.experts_per_token * (2ull * c.ffn_size + 4ull * c.hidden_size + 16 + 2 * sizeof(GpuExpertChunk)) +
         4 * RowsOfWholeTiles(c.experts);
}

}  // namespace

uint64_t CudaTransformer::ScratchBytes(const ModelConfig& c, const CudaWeights& weights,
                                       const DeviceLimits& limits, uint32_t ranks) {
  const uint64_t tokens = std::max(limits.max_step_tokens, limits.max_sequences);
  const uint64_t q = uint64_t{c.heads} * c.head_dim, kv = uint64_t{c.kv_heads} * c.head_dim;
  const uint64_t per_token = 8ull * c.hidden_size + c.ffn_size + 2ull * c.hidden_size + 2 * (q + 2 * kv) +
                             2 * q + FfnBytes(c) + (c.has_post_norms ? 4ull * c.hidden_size : 0);
  const uint64_t rows = std::min<uint64_t>(kLogitRows, std::max<uint64_t>(tokens, 1));
  uint64_t dequantized = 0;
  for (const CudaLayer& layer : weights.layers) {
    for (const GpuMatrix& m : {layer.qkv, layer.output, layer.gate_up, layer.down}) {
      if (m.format != GpuFormat::kBF16) dequantized = std::max(dequantized, uint64_t{2} * m.rows * m.columns);
    }
  }
  const uint64_t gathered = ranks > 1 ? rows * 4ull * c.vocab_size : 0;
  return tokens * per_token + rows * (4ull * RowsOfWholeTiles(c.vocab_size) + 2ull * c.hidden_size) +
         gathered + dequantized + 4 * kDevicePartialFloats +
         GpuSampleScratchBytes(static_cast<uint32_t>(rows), c.vocab_size) +
         (c.window_rope_base > 0 ? 8ull : 4ull) * limits.context_length * c.head_dim + (uint64_t{128} << 20) +
         16ull * limits.max_sequences * (limits.context_length / 16 + 1) +
         sizeof(GpuLogitAdjustment) * kMostAdjustments;
}

Status CudaTransformer::Impl::Allocate() {
  const uint64_t tokens = max_tokens(), rows = logit_rows();
  // The pool: per layer keys and values [kv_heads, blocks, block_tokens, head_dim], then scales of int8.
  pool_blocks = shape.blocks + 1;
  const uint64_t row_bytes = shape.head_dim * KvElementBytes(shape.dtype);
  const uint64_t pool_rows = uint64_t{shape.kv_heads} * pool_blocks * shape.block_tokens;
  const uint64_t data = Aligned(pool_rows * row_bytes);
  const uint64_t scales = HasScales(shape.dtype) ? Aligned(pool_rows * sizeof(float)) : 0;
  ASSIGN_OR_RETURN(pool, CudaBuffer::Device(2 * shape.layers * (data + scales), "KV cache"));
  uint32_t staged_at = 0;
  const auto add_part = [&](std::byte* data_of_part, uint64_t bytes_of_row) {
    parts.push_back({.data = data_of_part,
                     .bytes = static_cast<uint32_t>(shape.block_tokens * bytes_of_row),
                     .row_bytes = static_cast<uint32_t>(bytes_of_row),
                     .staged_at = staged_at});
    staged_at += shape.kv_heads * parts.back().bytes;
  };
  for (uint32_t i = 0; i < 2 * shape.layers; ++i) {
    std::byte* const at = pool.data() + i * (data + scales);
    add_part(at, row_bytes);
    if (scales > 0) add_part(at + data, sizeof(float));
  }
  ASSIGN_OR_RETURN(pool_parts, CudaBuffer::Device(parts.size() * sizeof(GpuKvPart), "KV parts"));
  RETURN_IF_CUDA_ERROR(
      cudaMemcpy(pool_parts.data(), parts.data(), parts.size() * sizeof(GpuKvPart), cudaMemcpyHostToDevice));
  if (shape.host_blocks > 0) {
    ASSIGN_OR_RETURN(host_pool, CudaBuffer::Pinned(shape.host_blocks * shape.BlockBytes(), "KV swap memory"));
    ASSIGN_OR_RETURN(copies, CudaStream::Create());
    for (Slot& slot : slots) {
      ASSIGN_OR_RETURN(slot.block, CudaBuffer::Device(shape.BlockBytes(), "KV staging"));
      RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&slot.gathered, cudaEventDisableTiming));
      RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
    }
  }

  uint64_t widest = 0, code_width = 0;
  uint32_t most_rows = weights.head.rows;
  for (const CudaLayer& layer : weights.layers) {
    for (const GpuMatrix& m : {layer.qkv, layer.output, layer.gate_up, layer.down}) {
      if (m.format != GpuFormat::kBF16) widest = std::max(widest, uint64_t{m.rows} * m.columns);
      most_rows = std::max(most_rows, m.rows);
      if (m.format == GpuFormat::kE4M3 || m.has_row_scales)
        code_width = std::max(code_width, uint64_t{m.columns});
    }
  }
  arrived_count = tokens * config.kv_heads;
  ArrayLayout layout;
  const uint64_t at_hidden = layout.Add<float>(tokens * config.hidden_size);
  const uint64_t at_sublayer = layout.Add<float>(config.has_post_norms ? tokens * config.hidden_size : 0);
  const uint64_t at_normed = layout.Add<uint16_t>(tokens * config.hidden_size);
  const uint64_t at_squares = layout.Add<float>(uint64_t{kMostNormTokens} * config.hidden_size / kTileRows);
  const uint64_t at_qkv = layout.Add<uint16_t>(tokens * (q_width() + 2 * kv_width()));
  const uint64_t at_attended = layout.Add<uint16_t>(tokens * q_width());
  const uint64_t pairs = tokens * config.experts_per_token, is_plain = config.experts == 0 ? 1 : 0;
  const uint64_t at_gate_up = layout.Add<uint16_t>(is_plain * tokens * 2 * config.ffn_size);
  const uint64_t at_gate = layout.Add<uint16_t>((is_plain * tokens + pairs) * config.ffn_size);
  const ExpertRoutesLayout routes({.tokens = tokens,
                                   .experts = config.experts,
                                   .per_token = config.experts_per_token,
                                   .router_rows = RowsOfWholeTiles(config.experts)},
                                  layout);
  const uint64_t at_expert_rows = layout.Add<float>(pairs * config.hidden_size);
  const uint64_t at_last = layout.Add<uint16_t>(rows * config.hidden_size);
  const uint64_t at_logits = layout.Add<float>(rows * (has_logits() ? logit_pitch() : weights.head.rows));
  const uint64_t at_gathered = layout.Add<float>(group == nullptr ? 0 : rows * config.vocab_size);
  const uint64_t at_partials = layout.Add<float>(kDevicePartialFloats);
  const uint64_t at_arrived = layout.Add<uint32_t>(arrived_count);
  const uint64_t tile_counters = std::max(TileGemmCounters(most_rows, kMostTileTokens),
                                          WideGemmCounters(most_rows, kMostWideSplitTokens));
  const uint64_t at_tile_arrived = layout.Add<uint32_t>(tile_counters);
  const uint64_t at_dequantized = layout.Add<uint16_t>(widest);
  const uint64_t at_codes = layout.Add<uint8_t>(tokens * code_width);
  const uint64_t at_code_scales = layout.Add<float>(tokens);
  ASSIGN_OR_RETURN(scratch, CudaBuffer::Device(layout.bytes(), "activations"));
  hidden = scratch.as<float>(at_hidden);
  sublayer = scratch.as<float>(at_sublayer);
  normed = scratch.as<uint16_t>(at_normed);
  squares = scratch.as<float>(at_squares);
  qkv = scratch.as<uint16_t>(at_qkv);
  attended = scratch.as<uint16_t>(at_attended);
  gate_up = scratch.as<uint16_t>(at_gate_up);
  gate = scratch.as<uint16_t>(at_gate);
  experts = routes.At(scratch.data());
  expert_rows = scratch.as<float>(at_expert_rows);
  last_normed = scratch.as<uint16_t>(at_last);
  logits = scratch.as<float>(at_logits);
  gathered = group == nullptr ? nullptr : scratch.as<float>(at_gathered);
  partials = scratch.as<float>(at_partials);
  arrived = scratch.as<uint32_t>(at_arrived);
  tile_arrived = scratch.as<uint32_t>(at_tile_arrived);
  RETURN_IF_CUDA_ERROR(cudaMemset(tile_arrived, 0, tile_counters * sizeof(uint32_t)));
  dequantized = scratch.as<uint16_t>(at_dequantized);
  codes = scratch.as<uint8_t>(at_codes);
  code_scales = scratch.as<float>(at_code_scales);
  RETURN_IF_CUDA_ERROR(cudaMemset(arrived, 0, arrived_count * sizeof(uint32_t)));

  const uint64_t table = uint64_t{limits.context_length} * config.head_dim;  // cosines and sines
  const bool has_window_rope = config.window_rope_base > 0;
  ASSIGN_OR_RETURN(rope,
                   CudaBuffer::Device((has_window_rope ? 2 : 1) * table * sizeof(float), "RoPE tables"));
  RETURN_IF_ERROR(MakeAngles(MakeRopeFrequencies(config.rope_base, config.head_dim, RopeDivisors(config)),
                             rope.as<float>(), angles));
  if (has_window_rope) {
    RETURN_IF_ERROR(MakeAngles(MakeRopeFrequencies(config.window_rope_base, config.head_dim),
                               rope.as<float>() + table, window_angles));
  }

  const StepLayout largest(static_cast<uint32_t>(tokens + kMostGraphTokens),
                           static_cast<uint32_t>(tokens + kMostGraphTokens), static_cast<uint32_t>(tokens));
  const uint64_t staged = largest.adjustments + kMostAdjustments * sizeof(GpuLogitAdjustment);
  ASSIGN_OR_RETURN(staging, CudaBuffer::Device(staged, "step"));
  ASSIGN_OR_RETURN(staging_pinned, CudaBuffer::Pinned(staged, "step"));
  table_pitch = (limits.context_length + shape.block_tokens - 1) / shape.block_tokens;
  const uint64_t table_bytes = uint64_t{limits.max_sequences + 1} * table_pitch * sizeof(int32_t);
  ASSIGN_OR_RETURN(tables, CudaBuffer::Device(table_bytes, "block tables"));
  ASSIGN_OR_RETURN(tables_pinned, CudaBuffer::Pinned(table_bytes, "block tables"));
  std::memset(tables_pinned.data(), 0xff, table_bytes);  // no block: whatever is used is new to the device
  ASSIGN_OR_RETURN(
      sample_scratch,
      CudaBuffer::Device(GpuSampleScratchBytes(static_cast<uint32_t>(rows), config.vocab_size), "sampling"));
  const uint64_t result_bytes = (tokens + kMostGraphTokens) * sizeof(GpuSampleResult);
  ASSIGN_OR_RETURN(results, CudaBuffer::Device(result_bytes, "results"));
  ASSIGN_OR_RETURN(results_pinned, CudaBuffer::Pinned(result_bytes, "results"));
  return {};
}

// In `memory`, cosines and then sines.
Status CudaTransformer::Impl::MakeAngles(const RopeFrequencies& frequencies, float* memory, Angles& out) {
  ThreadPool threads(OpeningThreads());
  const RopeTable table = MakeRopeTable(limits.context_length, frequencies, threads);
  const uint64_t count = table.cos.size();
  out = {.cos = memory, .sin = memory + count};
  RETURN_IF_CUDA_ERROR(cudaMemcpy(out.cos, table.cos.data(), count * sizeof(float), cudaMemcpyHostToDevice));
  RETURN_IF_CUDA_ERROR(cudaMemcpy(out.sin, table.sin.data(), count * sizeof(float), cudaMemcpyHostToDevice));
  return {};
}

KvLayer CudaTransformer::Impl::Layer(uint32_t layer) const {
  const size_t per = HasScales(shape.dtype) ? 2 : 1;
  const auto rows = [&](size_t i) -> KvRows {
    return {.data = static_cast<std::byte*>(parts[i * per].data),
            .scales = per == 2 ? static_cast<float*>(parts[i * per + 1].data) : nullptr};
  };
  return {.dtype = shape.dtype, .keys = rows(2 * layer), .values = rows(2 * layer + 1)};
}

}  // namespace terrace
