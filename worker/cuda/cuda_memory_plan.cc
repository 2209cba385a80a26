#include <algorithm>
#include <cstring>

#include "base/machine.h"
#include "kernels/rope/rope_table.h"
#include "kernels/sample/sample_cuda.h"
#include "worker/cuda/cuda_transformer_impl.h"

namespace terrace {

namespace {

// What a driver takes for graphs and code that is loaded when it first runs, and what of the KV pool its
// blocks do not count: the one that pads graphs, blocks on their way to the host, the list of its parts.
constexpr uint64_t kOtherBytes = uint64_t{128} << 20;

StepMemoryOptions StepMemoryOf(const ModelConfig& config, const CudaWeights& weights,
                               const DeviceLimits& limits) {
  StepMemoryOptions options{.config = config,
                            .limits = limits,
                            .matrices = {.head_rows = weights.head.rows},
                            .sampling_bytes = GpuSampleScratchBytes(LogitRows(limits), config.vocab_size)};
  for (const CudaLayer& layer : weights.layers) {
    for (const GpuMatrix& m : {layer.qkv, layer.output, layer.gate_up, layer.down}) options.matrices.Add(m);
  }
  return options;
}

}  // namespace

// Rank 0 takes the most of a group, and of blocks the smallest.
uint64_t CudaTransformer::ScratchBytes(const ModelConfig& config, const CudaWeights& weights,
                                       const DeviceLimits& limits, uint32_t ranks) {
  StepMemoryOptions options = StepMemoryOf(config, weights, limits);
  options.is_of_group = ranks > 1;
  return PlanStepMemory(options).bytes() + CublasLt::kWorkspaceBytes + kOtherBytes;
}

Status CudaTransformer::Impl::AllocatePool() {
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
  return {};
}

Status CudaTransformer::Impl::AllocateSteps() {
  StepMemoryOptions options = StepMemoryOf(config, weights, limits);
  options.is_of_group = group != nullptr;
  options.has_logits = has_logits();
  options.block_tokens = shape.block_tokens;
  const StepMemory memory = PlanStepMemory(options);
  // As StepMemory::Buffer has them.
  CudaBuffer* const buffers[StepMemory::kBuffers] = {&scratch, &rope,           &staging,
                                                     &tables,  &sample_scratch, &results};
  for (size_t i = 0; i < memory.buffers.size(); ++i) {
    ASSIGN_OR_RETURN(*buffers[i], CudaBuffer::Device(memory.buffers[i].bytes, memory.buffers[i].what));
  }
  ASSIGN_OR_RETURN(staging_pinned, CudaBuffer::Pinned(staging.bytes(), "step"));
  ASSIGN_OR_RETURN(tables_pinned, CudaBuffer::Pinned(tables.bytes(), "block tables"));
  std::memset(tables_pinned.data(), 0xff, tables.bytes());  // no block: whatever is used is new to the device
  ASSIGN_OR_RETURN(results_pinned, CudaBuffer::Pinned(results.bytes(), "results"));
  table_pitch = memory.table_pitch;

  const StepMemory::Arrays& at = memory.at;
  hidden = scratch.as<float>(at.hidden);
  sublayer = scratch.as<float>(at.sublayer);
  normed = scratch.as<uint16_t>(at.normed);
  squares = scratch.as<float>(at.squares);
  qkv = scratch.as<uint16_t>(at.qkv);
  attended = scratch.as<uint16_t>(at.attended);
  gate_up = scratch.as<uint16_t>(at.gate_up);
  gate = scratch.as<uint16_t>(at.gate);
  experts = at.experts.At(scratch.data());
  expert_rows = scratch.as<float>(at.expert_rows);
  last_normed = scratch.as<uint16_t>(at.last_normed);
  logits = scratch.as<float>(at.logits);
  gathered = group == nullptr ? nullptr : scratch.as<float>(at.gathered);
  partials = scratch.as<float>(at.partials);
  arrived = scratch.as<uint32_t>(at.arrived);
  RETURN_IF_CUDA_ERROR(cudaMemset(arrived, 0, memory.arrived_count * sizeof(uint32_t)));
  tile_arrived = scratch.as<uint32_t>(at.tile_arrived);
  RETURN_IF_CUDA_ERROR(cudaMemset(tile_arrived, 0, memory.tile_arrived_count * sizeof(uint32_t)));
  dequantized = scratch.as<uint16_t>(at.dequantized);
  codes = scratch.as<uint8_t>(at.codes);
  code_scales = scratch.as<float>(at.code_scales);

  RETURN_IF_ERROR(MakeAngles(MakeRopeFrequencies(config.rope_base, config.head_dim, RopeDivisors(config)),
                             rope.as<float>(), angles));
  if (config.window_rope_base > 0) {
    const uint64_t table_bytes = rope.bytes() / 2;
    RETURN_IF_ERROR(MakeAngles(MakeRopeFrequencies(config.window_rope_base, config.head_dim),
                               rope.as<float>(table_bytes), window_angles));
  }
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
