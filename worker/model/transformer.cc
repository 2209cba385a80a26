#include "worker/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/quant/weight_values.h"
#include "worker/model/arch_spec.h"
#include "worker/tensor/large_buffer.h"

namespace terrace {
namespace {

struct Layer {
  std::vector<float> attention_norm, ffn_norm;  // [hidden]
  GemmWeights query, key, value;                // [heads or kv_heads * head_dim, hidden]
  GemmWeights attention_output;                 // [hidden, heads * head_dim]
  GemmWeights gate, up;                         // [ffn, hidden]
  GemmWeights down;                             // [hidden, ffn]
};

struct Weights {
  WeightMatrix embedding;         // [vocabulary, hidden], as the file holds it
  GemmWeights output;             // the same shape
  std::vector<float> final_norm;  // [hidden]
  std::vector<Layer> layers;
  uint64_t parameters = 0, bytes = 0;
  LargeBuffer packed;  // what the matrices borrow
};

// The sequences of a batch, laid side by side: one row per token.
struct Rows {
  std::vector<int32_t> tokens;
  std::vector<uint32_t> positions;
  std::vector<const int32_t*> block_tables;
  std::vector<size_t> wanted;  // rows whose logits are wanted, rising
};

// Activations of one step: [rows, width] each. They grow to the largest step seen and stay.
struct Scratch {
  std::vector<float> hidden, query, key, value, attended, gate, cos, sin, logits;
};

WeightMatrix MatrixOf(const TensorView& tensor) {
  return {.dtype = tensor.dtype, .data = tensor.data, .rows = tensor.shape[0], .columns = tensor.shape[1]};
}

std::vector<float> VectorOf(const TensorView& tensor) {
  const WeightMatrix row{.dtype = tensor.dtype, .data = tensor.data, .rows = 1, .columns = tensor.shape[0]};
  std::vector<float> out(row.columns);
  for (size_t i = 0; i < out.size(); ++i) out[i] = WeightAt(row, 0, i);
  return out;
}

// Where a tensor goes: a vector, a matrix, or (null both) the embedding.
struct Place {
  std::vector<float>* vector = nullptr;
  GemmWeights* matrix = nullptr;
};

Place PlaceOf(const TensorRequirement& required, Weights& weights) {
  const auto layer = [&]() -> Layer& { return weights.layers[required.layer]; };
  switch (required.kind) {
    case TensorKind::kEmbedding:
      return {};
    case TensorKind::kOutput:
      return {.matrix = &weights.output};
    case TensorKind::kFinalNorm:
      return {.vector = &weights.final_norm};
    case TensorKind::kAttentionNorm:
      return {.vector = &layer().attention_norm};
    case TensorKind::kQuery:
      return {.matrix = &layer().query};
    case TensorKind::kKey:
      return {.matrix = &layer().key};
    case TensorKind::kValue:
      return {.matrix = &layer().value};
    case TensorKind::kAttentionOutput:
      return {.matrix = &layer().attention_output};
    case TensorKind::kFfnNorm:
      return {.vector = &layer().ffn_norm};
    case TensorKind::kGate:
      return {.matrix = &layer().gate};
    case TensorKind::kUp:
      return {.matrix = &layer().up};
    case TensorKind::kDown:
      return {.matrix = &layer().down};
  }
  return {};
}

// A matrix of the file that gemm will multiply by.
struct ToPack {
  WeightMatrix matrix;
  GemmWeights* out;
};

// Into one buffer, in the order given: the order in which a step reads them.
Status Pack(std::span<const ToPack> matrices, ComputeType compute, uint64_t free_bytes, const OpTable& ops,
            ThreadPool& pool, const std::function<bool()>& is_cancelled, LargeBuffer& memory) {
  size_t bytes = 0;
  for (const ToPack& each : matrices) bytes += ops.packed_bytes(each.matrix, compute);
  if (bytes > free_bytes) {  // the system would promise it, and end the process later
    return WithReason(
        ResourceExhausted("the packed weights take ", bytes, " bytes, free memory is ", free_bytes,
                          compute == ComputeType::kF32 ? "; with compute auto they take less" : ""),
        "weights_too_large");
  }
  ASSIGN_OR_RETURN(memory, LargeBuffer::Allocate(bytes, "model weights"));
  std::byte* at = memory.data();
  for (const ToPack& each : matrices) {
    if (is_cancelled && is_cancelled()) return Cancelled("interrupted");
    *each.out = ops.pack(each.matrix, compute, at, pool);
    at += ops.packed_bytes(each.matrix, compute);
  }
  return absl::OkStatus();
}

StatusOr<Weights> LoadWeights(const ModelConfig& config, const WeightSource& source, ComputeType compute,
                              uint64_t free_bytes, const OpTable& ops, ThreadPool& pool,
                              const std::function<bool()>& is_cancelled) {
  ASSIGN_OR_RETURN(const std::vector<FoundTensor> tensors, FindTensors(config, source));
  Weights weights;
  std::vector<ToPack> matrices;
  weights.layers.resize(config.layers);
  for (const auto& [required, tensor] : tensors) {
    const Place place = PlaceOf(required, weights);
    if (place.vector != nullptr) {
      *place.vector = VectorOf(tensor);
    } else if (place.matrix != nullptr) {
      matrices.push_back({MatrixOf(tensor), place.matrix});
    } else {
      weights.embedding = MatrixOf(tensor);
    }
    ASSIGN_OR_RETURN(const uint64_t elements, ElementCount(tensor.shape));
    weights.parameters += elements;
    weights.bytes += tensor.bytes;
  }
  if (config.tied_embeddings) matrices.push_back({weights.embedding, &weights.output});
  RETURN_IF_ERROR(Pack(matrices, compute, free_bytes, ops, pool, is_cancelled, weights.packed));
  return weights;
}

float* Fit(std::vector<float>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

}  // namespace

struct Transformer::Impl {
  // Lays `batch` out in `rows`. What breaks its contract is a bug of the caller.
  void Gather(const Batch& batch, const KvPool& kv);
  void RunLayer(const Layer& layer, const KvLayer& kv, const KvShape& shape);
  std::span<const float> Logits();

  // The parts' products of x or, with `norm`, of RmsNorm(x) * norm; for all rows.
  void Multiply(const float* x, const std::vector<float>* norm, std::initializer_list<GemmPart> parts,
                size_t tokens, bool gated = false) const {
    ops.gemm({.x = x,
              .norm = norm == nullptr ? nullptr : norm->data(),
              .norm_epsilon = config.norm_epsilon,
              .tokens = tokens,
              .parts = {parts.begin(), parts.size()},
              .gated = gated},
             pool);
  }

  const ModelConfig config;
  const OpTable& ops;
  ThreadPool& pool;
  const Weights weights;
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

// x += Attention(RmsNorm(x));  x += W_down (SiLU(W_gate h) * W_up h) with h = RmsNorm(x)
void Transformer::Impl::RunLayer(const Layer& layer, const KvLayer& kv, const KvShape& shape) {
  const size_t tokens = rows.tokens.size();
  float* x = scratch.hidden.data();
  float* q = Fit(scratch.query, tokens * layer.query.rows);
  float* k = Fit(scratch.key, tokens * layer.key.rows);
  float* v = Fit(scratch.value, tokens * layer.value.rows);
  float* attended = Fit(scratch.attended, tokens * layer.query.rows);
  float* gate = Fit(scratch.gate, tokens * config.ffn_size);
  const PagedTokens batch{.positions = rows.positions.data(),
                          .block_tables = rows.block_tables.data(),
                          .tokens = tokens,
                          .kv_heads = config.kv_heads,
                          .head_dim = config.head_dim,
                          .blocks = shape.blocks,
                          .block_tokens = shape.block_tokens};

  Multiply(x, &layer.attention_norm, {{layer.query, q}, {layer.key, k}, {layer.value, v}}, tokens);
  ops.rope_kv({.batch = batch,
               .q = q,
               .k = k,
               .v = v,
               .cos = scratch.cos.data(),
               .sin = scratch.sin.data(),
               .heads = config.heads,
               .neighbours = config.rope_pairing == RopePairing::kNeighbours,
               .kv = kv},
              pool);
  ops.paged_attention({.batch = batch,
                       .q = q,
                       .out = attended,
                       .kv = kv,
                       .heads = config.heads,
                       .scale = 1 / std::sqrt(static_cast<float>(config.head_dim))},
                      pool);
  Multiply(attended, nullptr, {{layer.attention_output, x, /*add_to_out=*/true}}, tokens);

  Multiply(x, &layer.ffn_norm, {{layer.gate, gate}, {layer.up, nullptr}}, tokens, /*gated=*/true);
  Multiply(gate, nullptr, {{layer.down, x, /*add_to_out=*/true}}, tokens);
}

// Only the wanted rows pass the last norm and the output matrix.
std::span<const float> Transformer::Impl::Logits() {
  const size_t wanted = rows.wanted.size(), hidden = config.hidden_size;
  float* x = scratch.hidden.data();
  for (size_t i = 0; i < wanted; ++i) {  // rising, so a row never covers one that is still to move
    std::copy_n(x + rows.wanted[i] * hidden, hidden, x + i * hidden);
  }
  float* logits = Fit(scratch.logits, wanted * config.vocab_size);
  Multiply(x, &weights.final_norm, {{weights.output, logits}}, wanted);
  return {logits, wanted * config.vocab_size};
}

StatusOr<std::unique_ptr<Transformer>> Transformer::Load(const ModelConfig& config,
                                                         const WeightSource& weights, const OpTable& ops,
                                                         ThreadPool& pool, ComputeType compute,
                                                         uint64_t free_bytes,
                                                         const std::function<bool()>& is_cancelled) {
  ASSIGN_OR_RETURN(Weights loaded,
                   LoadWeights(config, weights, compute, free_bytes, ops, pool, is_cancelled));
  return std::unique_ptr<Transformer>(
      new Transformer(std::unique_ptr<Impl>(new Impl{config, ops, pool, std::move(loaded), {}, {}})));
}

Transformer::Transformer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Transformer::~Transformer() = default;

std::span<const float> Transformer::Forward(const Batch& batch, KvPool& kv) {
  Impl& m = *impl_;
  CHECK(kv.shape().layers == m.config.layers && kv.shape().kv_heads == m.config.kv_heads &&
            kv.shape().head_dim == m.config.head_dim,
        "the KV pool is another model's");
  m.Gather(batch, kv);
  const size_t tokens = m.rows.tokens.size(), pairs = m.config.head_dim / 2;
  if (tokens == 0) return {};
  m.ops.embed({.tokens = m.rows.tokens.data(),
               .table = m.weights.embedding,
               .out = Fit(m.scratch.hidden, tokens * m.config.hidden_size),
               .count = tokens},
              m.pool);
  float *cos = Fit(m.scratch.cos, tokens * pairs), *sin = Fit(m.scratch.sin, tokens * pairs);
  constexpr size_t kTogether = 16;  // tokens whose angles are worth another thread
  m.pool.ParallelFor(tokens, kTogether, [&](size_t begin, size_t end) {
    RopeAngles(m.rows.positions.data() + begin, end - begin, m.config.rope_base, m.config.head_dim,
               cos + begin * pairs, sin + begin * pairs);
  });
  for (uint32_t i = 0; i < m.config.layers; ++i) {
    m.RunLayer(m.weights.layers[i], kv.layer(i), kv.shape());
  }
  return m.Logits();
}

const ModelConfig& Transformer::config() const { return impl_->config; }
uint64_t Transformer::parameters() const { return impl_->weights.parameters; }
uint64_t Transformer::weight_bytes() const { return impl_->weights.bytes; }

}  // namespace terrace
