#include "tools/optimize/layer_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tools/optimize/packed_matrices.h"

namespace terrace {
namespace {

constexpr size_t kPieceTokens = 512;
constexpr uint32_t kBlockTokens = 16;

}  // namespace

LayerRunner::LayerRunner(const ModelConfig& config, const std::vector<std::vector<TokenId>>& sequences,
                         const OpTable& ops, ThreadPool& pool)
    : config_(config), sequences_(sequences), ops_(ops), pool_(pool) {}

StatusOr<std::unique_ptr<LayerRunner>> LayerRunner::Create(const ModelConfig& config,
                                                           const std::vector<std::vector<TokenId>>& sequences,
                                                           const OpTable& ops, ThreadPool& pool) {
  auto runner = std::unique_ptr<LayerRunner>(new LayerRunner(config, sequences, ops, pool));
  size_t longest = 0;
  for (const auto& sequence : sequences) {
    CHECK(!sequence.empty(), "an empty sequence");
    longest = std::max(longest, sequence.size());
    runner->tokens_ += sequence.size();
  }
  CHECK(longest > 0, "no sequences");
  const size_t blocks = BlocksFor(longest, kBlockTokens), pairs = config.head_dim / 2;
  ASSIGN_OR_RETURN(runner->kv_, KvPool::Create({.layers = 1,
                                                .kv_heads = config.kv_heads,
                                                .head_dim = config.head_dim,
                                                .block_tokens = kBlockTokens,
                                                .blocks = static_cast<uint32_t>(blocks)}));
  runner->blocks_.resize(blocks);
  std::iota(runner->blocks_.begin(), runner->blocks_.end(), 0);
  runner->positions_.resize(longest);
  std::iota(runner->positions_.begin(), runner->positions_.end(), 0);
  runner->cos_.resize(longest * pairs);
  runner->sin_.resize(longest * pairs);
  RopeAngles(runner->positions_.data(), longest, config.rope_base, config.head_dim, runner->cos_.data(),
             runner->sin_.data());
  return runner;
}

Status LayerRunner::Run(const FloatLayer& layer, std::vector<float>& hidden, LayerObserver* observer) {
  CHECK(hidden.size() == tokens_ * config_.hidden_size, hidden.size(), " values of ", tokens_, " tokens");
  RETURN_IF_ERROR(ObserveNormalized(LinearInput::kAttention, hidden, layer.attention_norm, observer));
  RETURN_IF_ERROR(Attend(layer, hidden));
  RETURN_IF_ERROR(Observe(LinearInput::kAttentionOutput, layer.query.rows, observer));
  RETURN_IF_ERROR(AddProducts(layer.attention_output, hidden));

  RETURN_IF_ERROR(ObserveNormalized(LinearInput::kFfn, hidden, layer.ffn_norm, observer));
  RETURN_IF_ERROR(Gate(layer, hidden));
  RETURN_IF_ERROR(Observe(LinearInput::kDown, layer.gate.rows, observer));
  return AddProducts(layer.down, hidden);
}

// x[i] / sqrt(mean(x^2) + epsilon) * norm[i]
std::span<const float> LayerRunner::Normalized(const std::vector<float>& hidden,
                                               const std::vector<float>& norm, size_t begin, size_t count) {
  const size_t width = config_.hidden_size;
  normalized_.resize(count * width);
  pool_.ParallelFor(count, /*grain=*/16, [&](size_t first, size_t end) {
    for (size_t row = first; row < end; ++row) {
      const float* x = hidden.data() + (begin + row) * width;
      double squares = 0;
      for (size_t i = 0; i < width; ++i) squares += double{x[i]} * x[i];
      const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + config_.norm_epsilon);
      float* out = normalized_.data() + row * width;
      for (size_t i = 0; i < width; ++i) out[i] = static_cast<float>(x[i] * scale * norm[i]);
    }
  });
  return normalized_;
}

Status LayerRunner::ObserveNormalized(LinearInput input, const std::vector<float>& hidden,
                                      const std::vector<float>& norm, LayerObserver* observer) {
  if (observer == nullptr) return Status();
  observer->OnStream(input, hidden);
  for (size_t begin = 0; begin < tokens_; begin += kPieceTokens) {
    const size_t count = std::min(kPieceTokens, tokens_ - begin);
    RETURN_IF_ERROR(observer->OnInputs(input, Normalized(hidden, norm, begin, count), count));
  }
  return observer->OnReady(input);
}

Status LayerRunner::Observe(LinearInput input, size_t width, LayerObserver* observer) {
  if (observer == nullptr) return Status();
  for (size_t begin = 0; begin < tokens_; begin += kPieceTokens) {
    const size_t count = std::min(kPieceTokens, tokens_ - begin);
    RETURN_IF_ERROR(
        observer->OnInputs(input, std::span(inner_).subspan(begin * width, count * width), count));
  }
  return observer->OnReady(input);
}

// Sequence by sequence: each writes its keys and values over those of the one before.
Status LayerRunner::Attend(const FloatLayer& layer, const std::vector<float>& hidden) {
  ASSIGN_OR_RETURN(const PackedMatrices weights,
                   PackedMatrices::Make({&layer.query, &layer.key, &layer.value}, ops_, pool_));
  const size_t width = layer.query.rows, kv_width = layer.key.rows, heads = width / config_.head_dim,
               kv_heads = kv_width / config_.head_dim;
  CHECK(heads <= config_.heads && kv_heads <= config_.kv_heads, "a layer of another model");
  inner_.resize(tokens_ * width);
  size_t begin = 0;
  for (const auto& sequence : sequences_) {
    const size_t count = sequence.size();
    query_.resize(count * width);
    key_.resize(count * kv_width);
    value_.resize(count * kv_width);
    const GemmPart parts[] = {
        {weights[0], query_.data()}, {weights[1], key_.data()}, {weights[2], value_.data()}};
    ops_.gemm(
        {.x = Normalized(hidden, layer.attention_norm, begin, count).data(), .tokens = count, .parts = parts},
        pool_);
    const std::vector<const int32_t*> tables(count, blocks_.data());
    const PagedTokens batch{.positions = positions_.data(),
                            .block_tables = tables.data(),
                            .tokens = count,
                            .kv_heads = kv_heads,
                            .head_dim = config_.head_dim,
                            .blocks = blocks_.size(),
                            .block_tokens = kBlockTokens};
    ops_.rope_kv({.batch = batch,
                  .q = query_.data(),
                  .k = key_.data(),
                  .v = value_.data(),
                  .cos = cos_.data(),
                  .sin = sin_.data(),
                  .heads = heads,
                  .neighbours = config_.rope_pairing == RopePairing::kNeighbours,
                  .kv = kv_->layer(0)},
                 pool_);
    ops_.paged_attention({.batch = batch,
                          .q = query_.data(),
                          .out = inner_.data() + begin * width,
                          .kv = kv_->layer(0),
                          .heads = heads,
                          .scale = 1 / std::sqrt(static_cast<float>(config_.head_dim))},
                         pool_);
    begin += count;
  }
  return Status();
}

Status LayerRunner::Gate(const FloatLayer& layer, const std::vector<float>& hidden) {
  ASSIGN_OR_RETURN(const PackedMatrices weights, PackedMatrices::Make({&layer.gate, &layer.up}, ops_, pool_));
  const size_t width = layer.gate.rows;
  inner_.resize(tokens_ * width);
  for (size_t begin = 0; begin < tokens_; begin += kPieceTokens) {
    const size_t count = std::min(kPieceTokens, tokens_ - begin);
    const GemmPart parts[] = {{weights[0], inner_.data() + begin * width}, {weights[1]}};
    ops_.gemm({.x = Normalized(hidden, layer.ffn_norm, begin, count).data(),
               .tokens = count,
               .parts = parts,
               .gated = true},
              pool_);
  }
  return Status();
}

Status LayerRunner::AddProducts(const FloatMatrix& matrix, std::vector<float>& hidden) const {
  ASSIGN_OR_RETURN(const PackedMatrices weights, PackedMatrices::Make({&matrix}, ops_, pool_));
  for (size_t begin = 0; begin < tokens_; begin += kPieceTokens) {
    const size_t count = std::min(kPieceTokens, tokens_ - begin);
    const GemmPart parts[] = {{weights[0], hidden.data() + begin * matrix.rows, /*add_to_out=*/true}};
    ops_.gemm({.x = inner_.data() + begin * matrix.columns, .tokens = count, .parts = parts}, pool_);
  }
  return Status();
}

}  // namespace terrace
