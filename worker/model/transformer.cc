#include "worker/model/transformer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <utility>

#include "kernels/moe/expert_ffn.h"
#include "kernels/quant/weight_values.h"
#include "kernels/rope/rope_frequencies.h"
#include "worker/model/found_tensors.h"
#include "worker/parallel/pipeline.h"
#include "worker/parallel/sub_communicator.h"
#include "worker/parallel/tree_sum.h"
#include "worker/tensor/held_rows.h"
#include "worker/tensor/large_buffer.h"

namespace terrace {
namespace {

// A matrix that is cut by columns: this rank's virtual shards of it, side by side.
using ColumnShards = std::vector<GemmWeights>;

// This rank's part of a layer; its own heads, KV heads and feed-forward inputs.
struct Layer {
  std::vector<float> attention_norm, ffn_norm;            // [hidden]
  std::vector<float> attention_post_norm, ffn_post_norm;  // [hidden], or empty
  GemmWeights query, key, value;                          // [heads or kv_heads * head_dim, hidden]
  std::vector<float> query_bias, key_bias, value_bias;    // as wide, or empty
  std::vector<float> query_norm, key_norm;                // [head_dim], or empty
  ColumnShards attention_output;                          // [hidden, heads * head_dim]
  GemmWeights router;                                     // [experts, hidden], where there are any
  // Of each expert, or one.
  std::vector<GemmWeights> gates, ups;  // [ffn, hidden]
  std::vector<ColumnShards> downs;      // of each virtual shard, those of all experts: [hidden, ffn]
};

struct Weights {
  WeightMatrix embedding;  // [vocabulary, hidden], as the file holds it; of the first stage
  // The same shape, but for this rank's part of the vocabulary; of the last stage, like the norm.
  GemmWeights output;
  std::vector<float> final_norm;  // [hidden]
  std::vector<Layer> layers;      // of this stage
  uint64_t parameters = 0, bytes = 0, packed_bytes = 0;
  uint64_t model_parameters = 0;  // on all ranks
  // What the matrices borrow, beside the source.
  LargeBuffer packed;
  std::vector<HeldRows> held;
};

// The sequences of a batch, laid side by side: one row per token.
struct Rows {
  std::vector<int32_t> tokens;
  std::vector<uint32_t> positions;
  std::vector<const int32_t*> block_tables;
  std::vector<size_t> wanted;  // rows whose logits are wanted, rising
};

struct Angles {
  std::vector<float> cos, sin;  // [rows, head_dim / 2]
};

// Activations of one step: [rows, width] each. They grow to the largest step seen and stay.
struct Scratch {
  std::vector<float> hidden, query, key, value, attended, gate, logits;
  Angles angles, window_angles;  // of the step's positions
  std::vector<float> sums;       // of each virtual shard
  // Of experts: what the router puts out, whom it chooses, and what they put out.
  std::vector<float> router_logits, expert_weights, expert_rows, gathered;
  std::vector<uint32_t> chosen;
  ExpertGroups groups;
  std::vector<float> all_logits, other_logits;  // of all ranks, and of one that came in
};

// `elements` of a vector, or all.
std::vector<float> VectorOf(const WeightMatrix& row, const std::optional<IndexRange>& elements, float more) {
  const IndexRange range = elements.value_or(IndexRange{.begin = 0, .end = row.columns});
  std::vector<float> out(range.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = WeightAt(row, 0, range.begin + i) + more;
  return out;
}

// Where a tensor goes: to a vector (`elements` of it, or all), rows of it to a matrix, columns of it to the
// shards of one, or (none of them) to the embedding or nowhere.
struct Place {
  std::vector<float>* vector = nullptr;
  std::optional<IndexRange> elements = {};
  GemmWeights* matrix = nullptr;
  IndexRange rows = {};
  bool is_f32 = false;  // whatever the format of others
  std::vector<GemmWeights*> shards = {};
  std::span<const IndexRange> columns = {};
};

Place PlaceOf(const TensorRequirement& required, const ModelConfig& config, const ShardPlan& plan,
              Weights& weights) {
  const TensorPart part = PartOf(plan, config, required.kind, required.layer);
  const auto layer = [&]() -> Layer& { return weights.layers[required.layer - plan.layers.begin]; };
  const auto rows_of = [&](GemmWeights& matrix) -> Place { return {.matrix = &matrix, .rows = *part.rows}; };
  const auto columns_of = [&](const auto& shard) -> Place {
    Place place = {.columns = part.columns};
    for (size_t i = 0; i < part.columns.size(); ++i) place.shards.push_back(&shard(i));
    return place;
  };
  const auto vector = [](std::vector<float>& out) -> Place { return {.vector = &out}; };
  const auto bias = [&](std::vector<float>& out) -> Place {
    return {.vector = &out, .elements = ElementsOfBias(plan, config, required.kind, required.layer)};
  };
  switch (required.kind) {
    case TensorKind::kEmbedding:
    case TensorKind::kRopeDivisors:  // which is in the configuration
      return {};
    case TensorKind::kOutput:
      return rows_of(weights.output);
    case TensorKind::kFinalNorm:
      return vector(weights.final_norm);
    case TensorKind::kAttentionNorm:
      return vector(layer().attention_norm);
    case TensorKind::kQueryBias:
      return bias(layer().query_bias);
    case TensorKind::kKeyBias:
      return bias(layer().key_bias);
    case TensorKind::kValueBias:
      return bias(layer().value_bias);
    case TensorKind::kQueryNorm:
      return vector(layer().query_norm);
    case TensorKind::kKeyNorm:
      return vector(layer().key_norm);
    case TensorKind::kAttentionPostNorm:
      return vector(layer().attention_post_norm);
    case TensorKind::kFfnPostNorm:
      return vector(layer().ffn_post_norm);
    case TensorKind::kQuery:
      return rows_of(layer().query);
    case TensorKind::kKey:
      return rows_of(layer().key);
    case TensorKind::kValue:
      return rows_of(layer().value);
    case TensorKind::kAttentionOutput:
      return columns_of([&](size_t i) -> GemmWeights& { return layer().attention_output[i]; });
    case TensorKind::kFfnNorm:
      return vector(layer().ffn_norm);
    case TensorKind::kRouter:
      return {.matrix = &layer().router, .rows = {.begin = 0, .end = config.experts}, .is_f32 = true};
    case TensorKind::kGate:
      return rows_of(layer().gates[required.expert]);
    case TensorKind::kUp:
      return rows_of(layer().ups[required.expert]);
    case TensorKind::kDown:
      return columns_of([&](size_t i) -> GemmWeights& { return layer().downs[i][required.expert]; });
  }
  return {};
}

// A matrix of the file, or a part of one, that gemm will multiply by.
struct ToPack {
  const TensorView* tensor;
  IndexRange rows;                    // of it, and of these
  std::optional<IndexRange> columns;  // those, or all
  GemmWeights* out;
  ComputeType compute;

  WeightMatrix Of(const WeightMatrix& held_rows) const {
    return columns ? ColumnsOf(held_rows, columns->begin, columns->size()) : held_rows;
  }
  WeightMatrix Outline() const { return Of(RowsOf(OutlineOf(*tensor), rows.begin, rows.size())); }
};

// Holds the rows of one matrix after the other; neighbours that are parts of the same rows have them
// together.
class Holder {
 public:
  // `kept` has those that Keep says, when the next ones are held or this goes.
  Holder(ThreadPool& pool, std::vector<HeldRows>& kept) : pool_(pool), kept_(kept) {}
  ~Holder() { Let(); }

  StatusOr<WeightMatrix> Hold(const ToPack& part) {
    if (part.tensor != tensor_ || part.rows != rows_) {
      Let();
      ASSIGN_OR_RETURN(held_, HeldRows::Hold(*part.tensor, part.rows.begin, part.rows.end, pool_));
      tensor_ = part.tensor;
      rows_ = part.rows;
    }
    return part.Of(held_.matrix());
  }
  void Keep() { is_kept_ = true; }

 private:
  void Let() {
    if (std::exchange(is_kept_, false)) kept_.push_back(std::move(held_));
    held_ = {};
    tensor_ = nullptr;
  }

  ThreadPool& pool_;
  std::vector<HeldRows>& kept_;
  const TensorView* tensor_ = nullptr;
  IndexRange rows_ = {};
  HeldRows held_;
  bool is_kept_ = false;
};

// Into one buffer, in the order given: the order in which a step reads them.
Status Pack(std::span<const ToPack> matrices, const TransformerOptions& options, const OpTable& ops,
            ThreadPool& pool, Weights& weights) {
  uint64_t& bytes = weights.packed_bytes;
  Holder holder(pool, weights.held);
  for (const ToPack& each : matrices) {
    if (options.is_cancelled && options.is_cancelled()) return Cancelled("interrupted");
    ASSIGN_OR_RETURN(const WeightMatrix matrix, holder.Hold(each));
    *each.out = ops.layout(matrix, each.compute, pool);
    bytes += each.out->bytes;
    if (each.out->bytes == 0) holder.Keep();  // it is multiplied as it lies
  }
  if (bytes > options.free_bytes) {  // the system would promise it, and end the process later
    return WithReason(
        ResourceExhausted("the packed weights take ", bytes, " bytes, free memory is ", options.free_bytes,
                          options.compute == ComputeType::kF32 ? "; with compute auto they take less" : ""),
        "weights_too_large");
  }
  ASSIGN_OR_RETURN(weights.packed, LargeBuffer::Allocate(bytes, "model weights"));
  std::byte* at = weights.packed.data();
  for (const ToPack& each : matrices) {
    if (options.is_cancelled && options.is_cancelled()) return Cancelled("interrupted");
    if (each.out->bytes == 0) continue;
    ASSIGN_OR_RETURN(const WeightMatrix matrix, holder.Hold(each));
    *each.out = ops.pack(matrix, *each.out, at, pool);
    at += each.out->bytes;
  }
  return absl::OkStatus();
}

// What of `tensor` goes to `place`.
void AddParts(const TensorView& tensor, const Place& place, ComputeType compute, std::vector<ToPack>& parts) {
  if (place.is_f32) compute = ComputeType::kF32;
  if (place.matrix != nullptr) {
    parts.push_back({&tensor, place.rows, std::nullopt, place.matrix, compute});
    return;
  }
  const IndexRange all = {.begin = 0, .end = OutlineOf(tensor).rows};
  for (size_t i = 0; i < place.columns.size(); ++i)
    parts.push_back({&tensor, all, place.columns[i], place.shards[i], compute});
}

void Count(const WeightMatrix& matrix, Weights& weights) {
  weights.parameters += matrix.rows * matrix.columns;
  weights.bytes += matrix.rows * matrix.RowBytes();
}

// Of as many shards and experts as will be there, whose places do not move.
std::vector<Layer> EmptyLayers(const ModelConfig& config, const ShardPlan& plan) {
  std::vector<Layer> layers(plan.layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].attention_output.resize(plan.attention_shards.size());
    layers[i].gates.resize(config.FfnCount());
    layers[i].ups.resize(config.FfnCount());
    layers[i].downs.assign(plan.ffn_shards[plan.layers.begin + i].size(), ColumnShards(config.FfnCount()));
  }
  return layers;
}

StatusOr<Weights> LoadWeights(const ModelConfig& config, std::span<const FoundTensor> tensors,
                              const ShardPlan& plan, const TransformerOptions& options, const OpTable& ops,
                              ThreadPool& pool) {
  Weights weights;
  std::vector<ToPack> matrices;
  const TensorView* embedding = nullptr;
  weights.layers = EmptyLayers(config, plan);
  for (const auto& [required, tensor] : tensors) {
    const WeightMatrix outline = OutlineOf(tensor);
    weights.model_parameters += outline.rows * outline.columns;
    if (!IsHere(plan, config, required.kind, required.layer)) continue;
    const Place place = PlaceOf(required, config, plan, weights);
    if (place.matrix != nullptr || !place.shards.empty()) {
      AddParts(tensor, place, options.compute, matrices);
      continue;
    }
    if (place.vector != nullptr) {
      const float more = config.norms_less_one && IsNorm(required.kind) ? 1 : 0;
      *place.vector = VectorOf(MatrixOf(tensor), place.elements, more);
    } else if (required.kind == TensorKind::kEmbedding) {
      embedding = &tensor;
      if (!plan.is_first_stage()) continue;  // as the output matrix only
      ASSIGN_OR_RETURN(HeldRows held, HeldRows::Hold(tensor, pool));
      weights.embedding = held.matrix();
      weights.held.push_back(std::move(held));
    }
    Count(outline, weights);
  }
  for (const ToPack& each : matrices) Count(each.Outline(), weights);
  if (config.tied_embeddings && plan.is_last_stage()) {
    AddParts(*embedding, {.matrix = &weights.output, .rows = plan.vocabulary}, options.compute, matrices);
    if (!plan.is_first_stage()) Count(matrices.back().Outline(), weights);  // else it was, as the embedding
  }
  RETURN_IF_ERROR(Pack(matrices, options, ops, pool, weights));
  return weights;
}

// How many elements the formats of the matrices of a kind keep together, in each layer.
std::vector<size_t> BlocksOf(const ModelConfig& config, std::span<const FoundTensor> tensors,
                             TensorKind kind) {
  std::vector<size_t> blocks(config.layers, 1);
  for (const auto& [required, tensor] : tensors) {
    if (required.kind != kind) continue;
    size_t& block = blocks[required.layer];
    block = std::max(block, size_t{Info(tensor.dtype).block_elements});  // powers of two, as all of them are
  }
  return blocks;
}

StatusOr<ShardPlan> PlanOf(const ModelConfig& config, std::span<const FoundTensor> tensors,
                           ShardOptions shard) {
  shard.attention_block = std::ranges::max(BlocksOf(config, tensors, TensorKind::kAttentionOutput));
  shard.ffn_blocks = BlocksOf(config, tensors, TensorKind::kDown);
  return PlanShard(config, shard);
}

template <typename T>
T* Fit(std::vector<T>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

}  // namespace

struct Transformer::Impl {
  // Lays `batch` out in `rows`. What breaks its contract is a bug of the caller.
  void Gather(const Batch& batch, const KvPool& kv);
  void SetAngles(const RopeFrequencies& of, Angles& angles);
  Status RunStages(KvPool& kv);
  // A micro-batch is a run of `rows`. What goes into the stage is in its part of scratch.hidden, but for the
  // first stage's, and so is what comes out.
  Status RunStage(const IndexRange& micro_batch, KvPool& kv);
  Status PassOn(const MicroBatches& micro_batches, size_t tick);
  // `index` counts from the stage's first layer.
  Status RunLayer(uint32_t index, const IndexRange& micro_batch, const KvLayer& kv, const KvShape& shape);
  // x += what the feed-forward of a layer, or its experts, put out of x; `columns` are this rank's virtual
  // shards of their width.
  Status AddFeedForward(const Layer& layer, std::span<const IndexRange> columns, size_t tokens, float* x);
  Status AddExperts(const Layer& layer, std::span<const IndexRange> columns, size_t tokens, float* x);
  // x += the sum of what this rank's virtual shards and those of all others put out, [tokens, hidden], or its
  // RMSNorm times `norm`, where that is not empty. put(i, first, out, adds) puts or adds what shard i does,
  // whose inputs are from the rank's `first` on, to `out`.
  template <typename Put>
  Status AddShards(std::span<const IndexRange> columns, const Put& put, const std::vector<float>& norm,
                   size_t tokens, float* x);
  StatusOr<std::span<const float>> Logits();
  std::span<const float> OwnLogits();
  StatusOr<std::span<const float>> GatherLogits(std::span<const float> own);

  std::span<float> Hidden(const IndexRange& micro_batch) {  // [rows, hidden]
    return std::span(scratch.hidden)
        .subspan(micro_batch.begin * config.hidden_size, micro_batch.size() * config.hidden_size);
  }

  // The parts' products of x or, with `norm`, of RmsNorm(x) * norm; for all rows.
  void Multiply(const float* x, const std::vector<float>* norm, std::initializer_list<GemmPart> parts,
                size_t tokens, bool gated = false) const {
    ops.gemm({.x = x,
              .norm = norm == nullptr ? nullptr : norm->data(),
              .norm_epsilon = config.norm_epsilon,
              .tokens = tokens,
              .parts = {parts.begin(), parts.size()},
              .gated = gated,
              .gate = config.gate},
             pool);
  }

  // One part's product of `inputs` wide rows' columns, as many as it has, from x on.
  void MultiplyColumns(const float* x, size_t inputs, const GemmPart& part, size_t tokens) const {
    ops.gemm({.x = x, .x_pitch = inputs, .tokens = tokens, .parts = {&part, 1}}, pool);
  }

  const ModelConfig config;
  const OpTable& ops;
  ThreadPool& pool;
  const ShardPlan plan;
  Communicator* const group;                      // null: the whole model is here
  const std::unique_ptr<Communicator> sub_group;  // what `stage` is, where it is not the whole group
  Communicator* const stage;  // of the ranks that share each layer with this one; null: none do
  const Weights weights;
  const RopeFrequencies frequencies, window_frequencies;
  Rows rows;
  Scratch scratch;
};

void Transformer::Impl::Gather(const Batch& batch, const KvPool& kv) {
  rows = {};
  for (const BatchSequence& sequence : batch.sequences) {
    const size_t count = sequence.tokens.size();
    CHECK(sequence.logits <= count, sequence.logits, " logits of ", count, " tokens");
    CHECK(sequence.blocks.size() >= BlocksFor(sequence.first_position + count, kv.shape().block_tokens),
          sequence.blocks.size(), " KV blocks for ", sequence.first_position + count, " positions");
    for (size_t i = 0; i < count; ++i) {
      const int32_t token = sequence.tokens[i];
      CHECK(token >= 0 && static_cast<uint32_t>(token) < config.vocab_size, "token ", token);
      if (i + sequence.logits >= count) rows.wanted.push_back(rows.tokens.size());
      rows.tokens.push_back(token);
      rows.positions.push_back(sequence.first_position + static_cast<uint32_t>(i));
      rows.block_tables.push_back(sequence.blocks.data());
    }
  }
}

void Transformer::Impl::SetAngles(const RopeFrequencies& of, Angles& angles) {
  const size_t tokens = rows.tokens.size(), pairs = config.head_dim / 2;
  float *cos = Fit(angles.cos, tokens * pairs), *sin = Fit(angles.sin, tokens * pairs);
  constexpr size_t kTogether = 16;  // tokens whose angles are worth another thread
  pool.ParallelFor(tokens, kTogether, [&](size_t begin, size_t end) {
    RopeAngles(rows.positions.data() + begin, end - begin, of, cos + begin * pairs, sin + begin * pairs);
  });
}

Status Transformer::Impl::RunStages(KvPool& kv) {
  const MicroBatches micro_batches(rows.tokens.size(), plan.stages);
  for (size_t tick = 0; tick < micro_batches.ticks(); ++tick) {
    const std::optional<IndexRange> micro_batch = micro_batches.At(tick, plan.stage);
    if (micro_batch.has_value()) RETURN_IF_ERROR(RunStage(*micro_batch, kv));
    if (plan.stages > 1) RETURN_IF_ERROR(PassOn(micro_batches, tick));
  }
  return Status();
}

Status Transformer::Impl::RunStage(const IndexRange& micro_batch, KvPool& kv) {
  if (plan.is_first_stage()) {
    ops.embed({.tokens = rows.tokens.data() + micro_batch.begin,
               .table = weights.embedding,
               .out = Hidden(micro_batch).data(),
               .count = micro_batch.size(),
               .scale = config.embedding_scale},
              pool);
  }
  for (uint32_t i = 0; i < weights.layers.size(); ++i)
    RETURN_IF_ERROR(RunLayer(i, micro_batch, kv.layer(i), kv.shape()));
  return Status();
}

// What was computed in this tick goes to the next stage, from each rank to the one of the same place there.
// First all ranks meet: so every rank misses one that hangs in its layers itself. Were only its neighbour to
// wait for it, and that one's for that one, those further on would name a neighbour.
Status Transformer::Impl::PassOn(const MicroBatches& micro_batches, size_t tick) {
  const Status met = group->Barrier();
  if (!met.ok() && group->ranks() > 2)
    return Annotate(met, "missed, or itself waiting for a rank that is beside it");
  RETURN_IF_ERROR(met);
  std::optional<Communicator::Outgoing> outgoing;
  std::optional<Communicator::Incoming> incoming;
  const auto computed = micro_batches.At(tick, plan.stage);
  if (!plan.is_last_stage() && computed.has_value()) {
    outgoing = {.to = group->rank() + plan.tensor_ranks, .data = std::as_bytes(Hidden(*computed))};
  }
  if (!plan.is_first_stage()) {
    const auto next = micro_batches.At(tick, plan.stage - 1);
    if (next.has_value()) {
      incoming = {.from = group->rank() - plan.tensor_ranks, .data = std::as_writable_bytes(Hidden(*next))};
    }
  }
  return group->SendReceive(outgoing, incoming);
}

// x += Attention(RmsNorm(x));  x += W_down (SiLU(W_gate h) * W_up h) with h = RmsNorm(x); with norms, biases
// and other functions where the family has them
Status Transformer::Impl::RunLayer(uint32_t index, const IndexRange& micro_batch, const KvLayer& kv,
                                   const KvShape& shape) {
  const Layer& layer = weights.layers[index];
  const uint32_t number = static_cast<uint32_t>(plan.layers.begin) + index;
  const Angles& angles = config.HasWindowRope(number) ? scratch.window_angles : scratch.angles;
  const size_t tokens = micro_batch.size(), first_angle = micro_batch.begin * (config.head_dim / 2);
  const auto data = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
  float* x = Hidden(micro_batch).data();
  float* q = Fit(scratch.query, tokens * layer.query.rows);
  float* k = Fit(scratch.key, tokens * layer.key.rows);
  float* v = Fit(scratch.value, tokens * layer.value.rows);
  float* attended = Fit(scratch.attended, tokens * layer.query.rows);
  const PagedTokens batch{.positions = rows.positions.data() + micro_batch.begin,
                          .block_tables = rows.block_tables.data() + micro_batch.begin,
                          .tokens = tokens,
                          .kv_heads = plan.kv_heads.size(),
                          .head_dim = config.head_dim,
                          .blocks = shape.blocks,
                          .block_tokens = shape.block_tokens};

  Multiply(x, &layer.attention_norm, {{layer.query, q}, {layer.key, k}, {layer.value, v}}, tokens);
  ops.rope_kv({.batch = batch,
               .q = q,
               .k = k,
               .v = v,
               .cos = angles.cos.data() + first_angle,
               .sin = angles.sin.data() + first_angle,
               .heads = plan.heads.size(),
               .neighbours = config.rope_pairing == RopePairing::kNeighbours,
               .kv = kv,
               .q_bias = data(layer.query_bias),
               .k_bias = data(layer.key_bias),
               .v_bias = data(layer.value_bias),
               .q_norm = data(layer.query_norm),
               .k_norm = data(layer.key_norm),
               .norm_epsilon = config.norm_epsilon},
              pool);
  ops.paged_attention({.batch = batch,
                       .q = q,
                       .out = attended,
                       .kv = kv,
                       .heads = plan.heads.size(),
                       .scale = config.AttentionScale(),
                       .window = config.Window(number),
                       .softcap = config.attention_softcap},
                      pool);
  const auto put = [&](size_t shard, size_t first, float* out, bool adds) {
    MultiplyColumns(attended + first, layer.query.rows, {layer.attention_output[shard], out, adds}, tokens);
  };
  RETURN_IF_ERROR(AddShards(plan.attention_shards, put, layer.attention_post_norm, tokens, x));
  const std::span<const IndexRange> columns = plan.ffn_shards[number];
  return config.experts > 0 ? AddExperts(layer, columns, tokens, x)
                            : AddFeedForward(layer, columns, tokens, x);
}

Status Transformer::Impl::AddFeedForward(const Layer& layer, std::span<const IndexRange> columns,
                                         size_t tokens, float* x) {
  const GemmWeights &gate = layer.gates[0], &up = layer.ups[0];
  float* gated = Fit(scratch.gate, tokens * gate.rows);
  Multiply(x, &layer.ffn_norm, {{gate, gated}, {up, nullptr}}, tokens, /*gated=*/true);
  const auto put = [&](size_t shard, size_t first, float* out, bool adds) {
    MultiplyColumns(gated + first, gate.rows, {layer.downs[shard][0], out, adds}, tokens);
  };
  return AddShards(columns, put, layer.ffn_post_norm, tokens, x);
}

Status Transformer::Impl::AddExperts(const Layer& layer, std::span<const IndexRange> columns, size_t tokens,
                                     float* x) {
  const size_t per_token = config.experts_per_token, pairs = tokens * per_token;
  const size_t width = layer.gates[0].rows, hidden = config.hidden_size;
  float* logits = Fit(scratch.router_logits, tokens * config.experts);
  float* expert_weights = Fit(scratch.expert_weights, pairs);
  uint32_t* chosen = Fit(scratch.chosen, pairs);
  float* gated = Fit(scratch.gate, pairs * width);
  float* expert_rows = Fit(scratch.expert_rows, pairs * hidden);
  ExpertGroups& groups = scratch.groups;
  Multiply(x, &layer.ffn_norm, {{layer.router, logits}}, tokens);
  ops.route_experts({.logits = logits,
                     .tokens = tokens,
                     .experts = config.experts,
                     .per_token = per_token,
                     .normalizes = config.normalizes_experts,
                     .chosen = chosen,
                     .weights = expert_weights},
                    pool);
  GroupPairs({chosen, pairs}, config.experts, groups);
  MultiplyGatedExperts(ops,
                       {.groups = groups,
                        .per_token = per_token,
                        .x = x,
                        .norm = layer.ffn_norm.data(),
                        .norm_epsilon = config.norm_epsilon,
                        .gates = layer.gates,
                        .ups = layer.ups,
                        .gate = config.gate,
                        .out = gated},
                       scratch.gathered, pool);
  const auto put = [&](size_t shard, size_t first, float* out, bool adds) {
    MultiplyExperts(ops,
                    {.groups = groups,
                     .x = gated + first,
                     .x_pitch = width,
                     .weights = layer.downs[shard],
                     .out = expert_rows},
                    pool);
    CombineExperts({.groups = groups,
                    .tokens = tokens,
                    .per_token = per_token,
                    .width = hidden,
                    .rows = expert_rows,
                    .weights = expert_weights,
                    .out = out,
                    .add_to_out = adds},
                   pool);
  };
  return AddShards(columns, put, layer.ffn_post_norm, tokens, x);
}

template <typename Put>
Status Transformer::Impl::AddShards(std::span<const IndexRange> columns, const Put& put,
                                    const std::vector<float>& norm, size_t tokens, float* x) {
  const size_t shards = columns.size();
  if (shards == 1 && stage == nullptr && norm.empty()) {
    put(0, 0, x, /*adds=*/true);
    return Status();
  }
  const size_t count = tokens * config.hidden_size;
  float* sums = Fit(scratch.sums, std::bit_width(shards) * count);
  constexpr size_t kTogether = 16 << 10;  // additions that are worth another thread
  // The additions of AddTree over all shards, which are a power of two, in its order: two neighbouring
  // subtrees of one size are added as soon as both are there, so that few sums are kept.
  size_t kept = 0, done = 0;
  for (size_t shard = 0; shard < shards; ++shard) {
    put(shard, columns[shard].begin - columns[0].begin, sums + kept++ * count, /*adds=*/false);
    ++done;
    for (size_t size = done; size % 2 == 0; size /= 2, --kept) {
      const std::array<float*, 2> pair = {sums + (kept - 2) * count, sums + (kept - 1) * count};
      pool.ParallelFor(count, kTogether, [&](size_t begin, size_t end) { AddTree(pair, begin, end); });
    }
  }
  CHECK(kept == 1, shards, " virtual shards");
  if (stage != nullptr) RETURN_IF_ERROR(stage->AllReduceSum({sums, count}));
  if (!norm.empty()) {
    ops.add_norm({.x = sums,
                  .norm = norm.data(),
                  .norm_epsilon = config.norm_epsilon,
                  .hidden = x,
                  .tokens = tokens,
                  .width = config.hidden_size},
                 pool);
    return Status();
  }
  pool.ParallelFor(count, kTogether, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) x[i] += sums[i];
  });
  return Status();
}

StatusOr<std::span<const float>> Transformer::Impl::Logits() {
  if (rows.wanted.empty()) return std::span<const float>();
  const std::span<const float> own = plan.is_last_stage() ? OwnLogits() : std::span<const float>();
  if (group == nullptr) return own;
  return GatherLogits(own);
}

// Only the wanted rows pass the last norm and the output matrix.
std::span<const float> Transformer::Impl::OwnLogits() {
  const size_t wanted = rows.wanted.size(), hidden = config.hidden_size;
  float* x = scratch.hidden.data();
  for (size_t i = 0; i < wanted; ++i) {  // rising, so a row never covers one that is still to move
    std::copy_n(x + rows.wanted[i] * hidden, hidden, x + i * hidden);
  }
  const size_t count = wanted * weights.output.rows;
  float* logits = Fit(scratch.logits, count);
  Multiply(x, &weights.final_norm, {{weights.output, logits}}, wanted);
  if (config.logit_softcap > 0)
    ops.cap_logits({.logits = logits, .count = count, .cap = config.logit_softcap}, pool);
  return {logits, count};
}

// Every rank of the last stage has the logits of its part of the vocabulary, `own`; rank 0 lays them side by
// side.
StatusOr<std::span<const float>> Transformer::Impl::GatherLogits(std::span<const float> own) {
  if (group->rank() != 0) {
    if (plan.is_last_stage()) RETURN_IF_ERROR(group->Send(std::as_bytes(own), 0));
    return std::span<const float>();
  }
  const size_t wanted = rows.wanted.size(), vocabulary = config.vocab_size;
  float* all = Fit(scratch.all_logits, wanted * vocabulary);
  const auto put = [&](const float* logits, const IndexRange& columns) {
    for (size_t row = 0; row < wanted; ++row) {
      std::copy_n(logits + row * columns.size(), columns.size(), all + row * vocabulary + columns.begin);
    }
  };
  for (uint32_t i = 0; i < plan.tensor_ranks; ++i) {
    const IndexRange columns = ShareOf(vocabulary, i, plan.tensor_ranks);
    const uint32_t rank = (plan.stages - 1) * plan.tensor_ranks + i;
    if (rank == 0) {
      put(own.data(), columns);
      continue;
    }
    const bool is_whole = plan.tensor_ranks == 1;  // then it goes where it belongs at once
    const size_t count = wanted * columns.size();
    const std::span<float> theirs(is_whole ? all : Fit(scratch.other_logits, count), count);
    RETURN_IF_ERROR(group->Receive(std::as_writable_bytes(theirs), rank));
    if (!is_whole) put(theirs.data(), columns);
  }
  return std::span<const float>(all, wanted * vocabulary);
}

StatusOr<std::unique_ptr<Transformer>> Transformer::Load(const ModelConfig& config,
                                                         const WeightSource& weights, const OpTable& ops,
                                                         ThreadPool& pool,
                                                         const TransformerOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<FoundTensor> tensors, FindTensors(config, weights));
  Communicator* const group = options.communicator;
  ASSIGN_OR_RETURN(const ShardPlan plan, PlanOf(config, tensors,
                                                {.rank = group == nullptr ? 0 : group->rank(),
                                                 .ranks = group == nullptr ? 1 : group->ranks(),
                                                 .stages = options.stages,
                                                 .virtual_shards = options.virtual_shards}));
  ASSIGN_OR_RETURN(Weights loaded, LoadWeights(config, tensors, plan, options, ops, pool));
  std::unique_ptr<Communicator> sub_group;
  if (plan.stages > 1 && plan.tensor_ranks > 1)
    sub_group = MakeSubCommunicator(*group, plan.stage * plan.tensor_ranks, plan.tensor_ranks);
  Communicator* const stage = plan.stages > 1 ? sub_group.get() : group;
  return std::unique_ptr<Transformer>(new Transformer(std::unique_ptr<Impl>(
      new Impl{.config = config,
               .ops = ops,
               .pool = pool,
               .plan = plan,
               .group = group,
               .sub_group = std::move(sub_group),
               .stage = stage,
               .weights = std::move(loaded),
               .frequencies = MakeRopeFrequencies(config.rope_base, config.head_dim, RopeDivisors(config)),
               .window_frequencies = config.window_rope_base > 0
                                         ? MakeRopeFrequencies(config.window_rope_base, config.head_dim)
                                         : RopeFrequencies(),
               .rows = {},
               .scratch = {}})));
}

StatusOr<ShardPlan> Transformer::Plan(const ModelConfig& config, const WeightSource& weights,
                                      ShardOptions shard) {
  ASSIGN_OR_RETURN(const std::vector<FoundTensor> tensors, FindTensors(config, weights));
  return PlanOf(config, tensors, shard);
}

Transformer::Transformer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Transformer::~Transformer() = default;

StatusOr<std::span<const float>> Transformer::Forward(const Batch& batch, KvPool& kv) {
  Impl& m = *impl_;
  CHECK(kv.shape().layers == m.plan.layers.size() && kv.shape().kv_heads == m.plan.kv_heads.size() &&
            kv.shape().head_dim == m.config.head_dim,
        "the KV pool is another model's");
  m.Gather(batch, kv);
  if (m.rows.tokens.empty()) return std::span<const float>();
  Fit(m.scratch.hidden, m.rows.tokens.size() * m.config.hidden_size);
  m.SetAngles(m.frequencies, m.scratch.angles);
  if (m.config.window_rope_base > 0) m.SetAngles(m.window_frequencies, m.scratch.window_angles);
  RETURN_IF_ERROR(m.RunStages(kv));
  return m.Logits();
}

const ModelConfig& Transformer::config() const { return impl_->config; }
const ShardPlan& Transformer::plan() const { return impl_->plan; }
uint64_t Transformer::parameters() const { return impl_->weights.parameters; }
uint64_t Transformer::weight_bytes() const { return impl_->weights.bytes; }
uint64_t Transformer::packed_bytes() const { return impl_->weights.packed_bytes; }
uint64_t Transformer::model_parameters() const { return impl_->weights.model_parameters; }

}  // namespace terrace
