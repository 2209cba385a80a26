#include <algorithm>
#include <cmath>

#include "kernels/attention/decode_attention_cuda.h"
#include "kernels/attention/prefill_attention_cuda.h"
#include "kernels/attention/prefill_runs.h"
#include "kernels/attention/run_attention_cuda.h"
#include "kernels/embed/embed_cuda.h"
#include "kernels/moe/grouped_gemm_cuda.h"
#include "kernels/moe/route_experts_cuda.h"
#include "kernels/norm/add_norm_cuda.h"
#include "kernels/norm/rms_norm_cuda.h"
#include "kernels/rope/rope_kv_cuda.h"
#include "kernels/sample/cap_logits_cuda.h"
#include "kernels/sample/sample_cuda.h"
#include "worker/cuda/cuda_transformer_impl.h"

namespace terrace {

GpuBatch CudaTransformer::Impl::BatchOf(const StepLayout& layout, uint32_t tokens) const {
  return {.tokens = tokens,
          .positions = staging.as<uint32_t>(layout.positions),
          .sequences = staging.as<uint32_t>(layout.sequences),
          .block_tables = tables.as<int32_t>(),
          .table_pitch = table_pitch,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .blocks = pool_blocks,
          .log2_block_tokens = static_cast<uint32_t>(std::countr_zero(shape.block_tokens))};
}

// Tokens that are decoded come first: padding of a graph behind them reads and writes a block of its own, at
// position 0, where none reads what another writes.
Status CudaTransformer::Impl::Describe(const Batch& batch, const Choice* choice, const StepLayout& layout,
                                       uint32_t token_count, uint32_t wanted_count) {
  RETURN_IF_CUDA_ERROR(cudaEventSynchronize(step_end));  // the step before has left the pinned memory
  auto* tokens = staging_pinned.as<int32_t>(layout.tokens);
  auto* positions = staging_pinned.as<uint32_t>(layout.positions);
  auto* sequences = staging_pinned.as<uint32_t>(layout.sequences);
  auto* wanted = staging_pinned.as<uint32_t>(layout.wanted);
  auto* table = tables_pinned.as<int32_t>();
  const uint32_t pad = static_cast<uint32_t>(batch.sequences.size());
  CHECK(pad <= limits.max_sequences, pad, " sequences");
  std::vector<uint32_t> first(batch.sequences.size());  // token of each sequence
  std::vector<PrefillChunk> chunks;
  uint32_t at = 0;
  for (const bool decoded : {true, false}) {
    for (uint32_t s = 0; s < pad; ++s) {
      const BatchSequence& sequence = batch.sequences[s];
      const auto count = static_cast<uint32_t>(sequence.tokens.size());
      if (decoded != IsDecoded(count)) continue;
      first[s] = at;
      const uint32_t blocks = (sequence.first_position + count + shape.block_tokens - 1) / shape.block_tokens;
      CHECK(sequence.blocks.size() >= blocks && blocks <= table_pitch, sequence.blocks.size(), " KV blocks");
      // Most steps of a decode find the tables that the device has.
      int32_t* const row = table + uint64_t{s} * table_pitch;
      if (!std::equal(row, row + blocks, sequence.blocks.data())) {
        std::copy_n(sequence.blocks.data(), blocks, row);
        step.tables_changed = true;
      }
      for (uint32_t i = 0; i < count; ++i) {
        CHECK(sequence.tokens[i] >= 0 && static_cast<uint32_t>(sequence.tokens[i]) < config.vocab_size);
        tokens[at + i] = sequence.tokens[i];
        positions[at + i] = sequence.first_position + i;
        sequences[at + i] = s;
      }
      if (!decoded) chunks.push_back({.first = at, .count = count, .position = sequence.first_position});
      at += count;
    }
  }
  const std::vector<GpuQueryRun> runs = PrefillRuns(chunks);
  CHECK(runs.size() == step.runs);
  std::copy(runs.begin(), runs.end(), staging_pinned.as<GpuQueryRun>(layout.runs));
  for (; at < token_count; ++at) {
    tokens[at] = 0;
    positions[at] = 0;
    sequences[at] = pad;
  }
  int32_t& block_of_padding = table[uint64_t{pad} * table_pitch];
  step.tables_changed = step.tables_changed || block_of_padding != static_cast<int32_t>(shape.blocks);
  block_of_padding = static_cast<int32_t>(shape.blocks);
  uint32_t rows = 0;
  for (uint32_t s = 0; s < pad; ++s) {
    const BatchSequence& sequence = batch.sequences[s];
    const auto count = static_cast<uint32_t>(sequence.tokens.size());
    for (uint32_t i = count - sequence.logits; i < count; ++i) wanted[rows++] = first[s] + i;
  }
  for (; rows < wanted_count; ++rows) wanted[rows] = 0;
  if (choice != nullptr) {
    auto* choices = staging_pinned.as<GpuSampleRow>(layout.choices);
    std::copy(choice->rows.begin(), choice->rows.end(), choices);
    std::fill(choices + choice->rows.size(), choices + wanted_count, GpuSampleRow{});
    std::copy(choice->adjustments.begin(), choice->adjustments.end(),
              staging_pinned.as<GpuLogitAdjustment>(layout.adjustments));
  }
  return {};
}

Status CudaTransformer::Impl::UploadTables() {
  if (!step.tables_changed) return {};
  const size_t pitch = size_t{table_pitch} * sizeof(int32_t);
  RETURN_IF_CUDA_ERROR(cudaMemcpy2DAsync(tables.data(), pitch, tables_pinned.data(), pitch,
                                         size_t{step.table_columns} * sizeof(int32_t), step.sequences + 1,
                                         cudaMemcpyHostToDevice, stream.get()));
  return {};
}

Status CudaTransformer::Impl::Upload(uint64_t begin, uint64_t end) {
  if (begin == end) return {};
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(staging.data() + begin, staging_pinned.data() + begin, end - begin,
                                       cudaMemcpyHostToDevice, stream.get()));
  return {};
}

Status CudaTransformer::Impl::Download(uint32_t rows) {
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(results_pinned.data(), results.data(), rows * sizeof(GpuSampleResult),
                                       cudaMemcpyDeviceToHost, stream.get()));
  return {};
}

Status CudaTransformer::Impl::Rope(uint32_t index, const GpuBatch& batch, uint32_t first) {
  const CudaLayer& layer = weights.layers[index];
  GpuBatch rest = batch;
  rest.tokens -= first;
  rest.positions += first;
  rest.sequences += first;
  RETURN_IF_CUDA_ERROR(RopeKvCuda({.batch = rest,
                                   .qkv = qkv + uint64_t{first} * (q_width() + 2 * kv_width()),
                                   .cos = AnglesOf(index).cos,
                                   .sin = AnglesOf(index).sin,
                                   .heads = config.heads,
                                   .neighbours = config.rope_pairing == RopePairing::kNeighbours,
                                   .kv = Layer(index)},
                                  launch(),
                                  {.bias = layer.qkv_bias,
                                   .q_norm = layer.query_norm,
                                   .k_norm = layer.key_norm,
                                   .norm_epsilon = config.norm_epsilon}));
  return {};
}

Status CudaTransformer::Impl::Attend(uint32_t layer, const GpuBatch& batch, const StepLayout& step_layout,
                                     uint32_t decode_tokens, uint32_t runs, uint32_t spans) {
  GpuAttentionArgs args{.batch = batch,
                        .q = qkv,
                        .q_pitch = q_width() + 2 * kv_width(),
                        .out = attended,
                        .kv = Layer(layer),
                        .heads = config.heads,
                        .scale = config.AttentionScale(),
                        .window = config.Window(layer),
                        .softcap = config.attention_softcap,
                        .most_spans = spans,
                        .partials = partials,
                        .arrived = arrived,
                        .cos = RopesInAttention(layer) ? AnglesOf(layer).cos : nullptr,
                        .sin = AnglesOf(layer).sin,
                        .neighbours = config.rope_pairing == RopePairing::kNeighbours,
                        .runs = staging.as<GpuQueryRun>(step_layout.runs),
                        .run_count = runs};
  const uint64_t per_token = GpuAttentionPartialFloats(1, config.heads, config.head_dim, spans);
  const auto together = static_cast<uint32_t>(
      std::max<uint64_t>(1, std::min<uint64_t>(kDevicePartialFloats / per_token, 65535)));
  for (uint32_t i = 0; i < decode_tokens; i += together) {
    args.first = i;
    args.count = std::min(together, decode_tokens - i);
    RETURN_IF_CUDA_ERROR(DecodeAttentionCuda(args, launch()));
  }
  if (runs == 0) return {};
  if (is_invariant) {
    RETURN_IF_CUDA_ERROR(RunAttentionCuda(args, launch()));
  } else {
    RETURN_IF_CUDA_ERROR(PrefillAttentionCuda(args, launch()));
  }
  return {};
}

Status CudaTransformer::Impl::QueueLayer(uint32_t index, const GpuBatch& batch, const StepLayout& layout,
                                         uint32_t decode_tokens, uint32_t runs, uint32_t spans) {
  const CudaLayer& layer = weights.layers[index];
  const uint32_t tokens = batch.tokens;
  const bool fuses = FusesNorms(tokens);
  const float* const next_norm =
      fuses && index + 1 < config.layers ? weights.layers[index + 1].attention_norm : nullptr;
  const auto norm = [&](const float* weight, RowCodes as) {
    return RmsNormCuda({.x = hidden,
                        .weight = weight,
                        .count = tokens,
                        .width = config.hidden_size,
                        .epsilon = config.norm_epsilon,
                        .out = as == RowCodes::kNone ? normed : nullptr,
                        .codes = as,
                        .out_codes = codes,
                        .scales = code_scales},
                       launch());
  };
  const bool is_normed = fuses && index > 0;  // by the layer before
  ASSIGN_OR_RETURN(const GemmPlan qkv_plan, PlanOf(Role::kQkv, layer.qkv, normed, tokens, GpuGemmOut::kBF16));
  const RowCodes qkv_reads = CodesRead(qkv_plan, layer.qkv, tokens, GpuGemmOut::kBF16);
  if (!is_normed) RETURN_IF_CUDA_ERROR(norm(layer.attention_norm, qkv_reads));
  RETURN_IF_ERROR(MultiplyAs(qkv_plan, layer.qkv, normed, tokens, qkv, GpuGemmOut::kBF16,
                             {.divides = is_normed, .has_codes = qkv_reads != RowCodes::kNone}));
  RETURN_IF_ERROR(Rope(index, batch, RopesInAttention(index) ? decode_tokens : 0));
  RETURN_IF_ERROR(Attend(index, batch, layout, decode_tokens, runs, spans));
  const GpuGemmOut residual = ResidualOut();
  RETURN_IF_ERROR(Multiply(Role::kOutput, layer.output, attended, tokens, ResidualMemory(), residual,
                           {.next_norm = fuses ? layer.ffn_norm : nullptr}));
  RETURN_IF_ERROR(AddUp(tokens, layer.attention_post_norm));
  if (config.experts > 0) return QueueExperts(layer, tokens);
  ASSIGN_OR_RETURN(const GemmPlan down_plan, PlanOf(Role::kDown, layer.down, gate, tokens, residual));
  ASSIGN_OR_RETURN(const GemmPlan gate_up_plan,
                   PlanOf(Role::kGateUp, layer.gate_up, normed, tokens, GpuGemmOut::kGated));
  const RowCodes gate_up_reads = CodesRead(gate_up_plan, layer.gate_up, tokens, GpuGemmOut::kGated);
  // Kernels that gate while they multiply write bf16.
  const bool gates_to_codes = gate_up_plan.kernel == GemmPlan::Kernel::kCublas &&
                              CodesRead(down_plan, layer.down, tokens, residual) == RowCodes::kE4M3;
  if (!fuses) RETURN_IF_CUDA_ERROR(norm(layer.ffn_norm, gate_up_reads));
  RETURN_IF_ERROR(MultiplyAs(
      gate_up_plan, layer.gate_up, normed, tokens, gate, GpuGemmOut::kGated,
      {.divides = fuses, .has_codes = gate_up_reads != RowCodes::kNone, .leaves_codes = gates_to_codes}));
  RETURN_IF_ERROR(MultiplyAs(down_plan, layer.down, gate, tokens, ResidualMemory(), residual,
                             {.next_norm = next_norm, .has_codes = gates_to_codes}));
  return AddUp(tokens, layer.ffn_post_norm);
}

Status CudaTransformer::Impl::QueueExperts(const CudaLayer& layer, uint32_t tokens) {
  const uint32_t per_token = config.experts_per_token, pairs = tokens * per_token;
  GpuExpertGroups groups = experts.groups;
  groups.chunk_tokens = ExpertChunkTokens(pairs, config.experts);
  groups.chunk_count = MostExpertChunks(pairs, config.experts, groups.chunk_tokens);
  RETURN_IF_CUDA_ERROR(RmsNormCuda({.x = hidden,
                                    .weight = layer.ffn_norm,
                                    .count = tokens,
                                    .width = config.hidden_size,
                                    .epsilon = config.norm_epsilon,
                                    .out = normed},
                                   launch()));
  RETURN_IF_ERROR(MultiplyAs(RouterPlan(layer.router, tokens), layer.router, normed, tokens, experts.logits,
                             GpuGemmOut::kF32, {}));
  RETURN_IF_CUDA_ERROR(RouteExpertsCuda({.logits = experts.logits,
                                         .pitch = layer.router.rows,
                                         .tokens = tokens,
                                         .experts = config.experts,
                                         .per_token = per_token,
                                         .normalizes = config.normalizes_experts,
                                         .chosen = experts.chosen,
                                         .weights = experts.weights,
                                         .groups = groups},
                                        launch()));
  RETURN_IF_CUDA_ERROR(GroupedGemmCuda({.x = normed,
                                        .per_token = per_token,
                                        .groups = groups,
                                        .weights = layer.gate_up,
                                        .experts = layer.gate_ups,
                                        .out = gate,
                                        .kind = GpuGemmOut::kGated,
                                        .gate = config.gate},
                                       launch()));
  RETURN_IF_CUDA_ERROR(GroupedGemmCuda({.x = gate,
                                        .groups = groups,
                                        .weights = layer.down,
                                        .experts = layer.downs,
                                        .out = expert_rows,
                                        .kind = GpuGemmOut::kF32},
                                       launch()));
  RETURN_IF_CUDA_ERROR(CombineExpertsCuda({.rows = expert_rows,
                                           .places = groups.places,
                                           .weights = experts.weights,
                                           .tokens = tokens,
                                           .per_token = per_token,
                                           .width = config.hidden_size,
                                           .adds_to_out = ResidualOut() == GpuGemmOut::kAddF32,
                                           .out = ResidualMemory()},
                                          launch()));
  return AddUp(tokens, layer.ffn_post_norm);
}

Status CudaTransformer::Impl::AddUp(uint32_t tokens, const float* post_norm) {
  if (group != nullptr) RETURN_IF_ERROR(group->AddUp(ResidualMemory(), tokens, stream.get()));
  if (post_norm == nullptr) return {};
  RETURN_IF_CUDA_ERROR(AddNormCuda({.x = sublayer,
                                    .weight = post_norm,
                                    .hidden = hidden,
                                    .count = tokens,
                                    .width = config.hidden_size,
                                    .epsilon = config.norm_epsilon},
                                   launch()));
  return {};
}

// Behind it rank 0 has all of the vocabulary in `logits`, where each rank had its own part.
Status CudaTransformer::Impl::GatherLogits(uint32_t rows) {
  if (group == nullptr) return {};
  RETURN_IF_ERROR(group->Gather(logits, rows, weights.head.rows, gathered, stream.get()));
  if (!has_logits()) return {};
  for (const StridedCopy& copy : LogitCopies(rows, config.vocab_size, group->ranks())) {
    RETURN_IF_CUDA_ERROR(cudaMemcpy2DAsync(logits + copy.to, copy.to_pitch * sizeof(float),
                                           gathered + copy.from, copy.from_pitch * sizeof(float),
                                           copy.width * sizeof(float), copy.height, cudaMemcpyDeviceToDevice,
                                           stream.get()));
  }
  return {};
}

Status CudaTransformer::Impl::CopyLogits(uint32_t rows, float* to) {
  const size_t row_bytes = size_t{config.vocab_size} * sizeof(float);
  RETURN_IF_CUDA_ERROR(cudaMemcpy2DAsync(to, row_bytes, logits, size_t{logit_pitch()} * sizeof(float),
                                         row_bytes, rows, cudaMemcpyDeviceToHost, stream.get()));
  return {};
}

Status CudaTransformer::Impl::QueueHead(const StepLayout& layout, uint32_t wanted, bool has_choice,
                                        Sampling samples) {
  logits_on_host = step.wants_logits && wanted > logit_rows();
  if (logits_on_host) host_logits.resize(uint64_t{wanted} * config.vocab_size);
  for (uint32_t begin = 0; begin < wanted; begin += logit_rows()) {
    const uint32_t count = std::min(logit_rows(), wanted - begin);
    if (group != nullptr && begin > 0) RETURN_IF_ERROR(group->Begin(0, wanted - begin));
    RETURN_IF_CUDA_ERROR(RmsNormCuda({.x = hidden,
                                      .weight = weights.final_norm,
                                      .rows = staging.as<uint32_t>(layout.wanted) + begin,
                                      .count = count,
                                      .width = config.hidden_size,
                                      .epsilon = config.norm_epsilon,
                                      .out = last_normed},
                                     launch()));
    RETURN_IF_ERROR(Multiply(Role::kHead, weights.head, last_normed, count, logits, GpuGemmOut::kF32));
    if (config.logit_softcap > 0) {
      RETURN_IF_CUDA_ERROR(CapLogitsCuda(
          {.logits = logits, .count = uint64_t{count} * weights.head.rows, .cap = config.logit_softcap},
          launch()));
    }
    RETURN_IF_ERROR(GatherLogits(count));
    if (has_choice) {
      RETURN_IF_CUDA_ERROR(SampleCuda({.logits = logits,
                                       .rows = count,
                                       .vocab = config.vocab_size,
                                       .pitch = logit_pitch(),
                                       .samples = samples.draws,
                                       .tops = samples.tops,
                                       .params = staging.as<GpuSampleRow>(layout.choices) + begin,
                                       .adjustments = staging.as<GpuLogitAdjustment>(layout.adjustments),
                                       .results = results.as<GpuSampleResult>() + begin,
                                       .scratch = sample_scratch.data()},
                                      launch()));
    }
    if (group != nullptr) RETURN_IF_ERROR(group->End(stream.get()));
    if (logits_on_host) {  // which waits for the device
      RETURN_IF_ERROR(CopyLogits(count, host_logits.data() + uint64_t{begin} * config.vocab_size));
    }
  }
  return {};
}

Status CudaTransformer::Impl::Queue(const StepLayout& layout, uint32_t tokens, uint32_t decode_tokens,
                                    uint32_t runs, uint32_t wanted, uint32_t spans, bool has_choice,
                                    Sampling samples) {
  // It does not follow: what the host sent and earlier steps wrote is there for all kernels behind it, also
  // before they wait. DecodeAttentionCuda counts on that.
  RETURN_IF_CUDA_ERROR(EmbedCuda({.tokens = staging.as<int32_t>(layout.tokens),
                                  .count = tokens,
                                  .table = weights.embedding,
                                  .vocab = config.vocab_size,
                                  .width = config.hidden_size,
                                  .out = hidden,
                                  .scale = config.embedding_scale},
                                 {.stream = stream.get(), .follows = false}));
  const GpuBatch batch = BatchOf(layout, tokens);
  for (uint32_t i = 0; i < config.layers; ++i) {
    RETURN_IF_ERROR(QueueLayer(i, batch, layout, decode_tokens, runs, spans));
    if (group != nullptr) RETURN_IF_ERROR(group->EndLayer(stream.get()));
  }
  if (group != nullptr && wanted == 0) return group->End(stream.get());
  return QueueHead(layout, wanted, has_choice, samples);
}

// A graph of the step's size, captured when it is first needed, with what goes to the device before the step
// and back behind it. Whatever times or allocates runs before, once.
Status CudaTransformer::Impl::QueueAsGraph(const StepLayout& layout, uint32_t tokens, uint32_t spans,
                                           Sampling samples) {
  const auto queue = [&]() -> Status {
    RETURN_IF_ERROR(Upload(0, layout.adjustments));
    RETURN_IF_ERROR(Queue(layout, tokens, tokens, 0, tokens, spans, /*has_choice=*/true, samples));
    return Download(tokens);
  };
  const auto key = std::make_tuple(tokens, spans, step.ropes_in_attention,
                                   (samples.draws ? 1 : 0) + (samples.tops ? 2 : 0));
  if (!graphs.contains(key) && graphs.size() >= kMostGraphs) ForgetOldestGraph();
  Graph& graph = graphs[key];
  graph.last_step = steps;
  if (graph.exec == nullptr) {
    step.is_first_of_its_kind = true;
    RETURN_IF_ERROR(queue());
    RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream.get()));
    // The step is done. What follows is for the next one like it; where memory is too short for that, it is
    // for none.
    RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    const Status queued = queue();
    cudaGraph_t captured = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream.get(), &captured);
    const bool made = queued.ok() && ended == cudaSuccess &&
                      cudaGraphInstantiate(&graph.exec, captured, 0) == cudaSuccess &&
                      cudaGraphUpload(graph.exec, stream.get()) == cudaSuccess;
    if (captured != nullptr) cudaGraphDestroy(captured);
    if (!made) {
      cudaGetLastError();
      ForgetGraphs();
      step.is_first_of_its_kind = false;  // the next one will be no faster
      RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream.get()));
    }
    return {};
  }
  RETURN_IF_CUDA_ERROR(cudaGraphLaunch(graph.exec, stream.get()));
  return {};
}

}  // namespace terrace
