#include "tools/optimize/layer_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "kernels/moe/expert_ffn.h"
#include "kernels/rope/rope_frequencies.h"
#include "tools/optimize/packed_matrices.h"

namespace terrace {
namespace {

constexpr uint32_t kBlockTokens = 16;

// Or null where the layer has none.
const std::vector<float>* Find(const FloatLayer& layer, TensorKind kind) {
  const auto found = layer.vectors.find(kind);
  return found == layer.vectors.end() ? nullptr : &found->second;
}
const float* Data(const FloatLayer& layer, TensorKind kind) {
  const std::vector<float>* values = Find(layer, kind);
  return values == nullptr ? nullptr : values->data();
}

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
    runner->starts_.push_back(runner->tokens_);
    runner->tokens_ += sequence.size();
  }
  CHECK(longest > 0, "no sequences");
  const size_t blocks = BlocksFor(longest, kBlockTokens);
  ASSIGN_OR_RETURN(runner->kv_, KvPool::Create({.layers = 1,
                                                .kv_heads = config.kv_heads,
                                                .head_dim = config.head_dim,
                                                .block_tokens = kBlockTokens,
                                                .blocks = static_cast<uint32_t>(blocks)}));
  runner->blocks_.resize(blocks);
  std::iota(runner->blocks_.begin(), runner->blocks_.end(), 0);
  runner->tables_.assign(kPieceTokens, runner->blocks_.data());
  runner->positions_.resize(longest);
  std::iota(runner->positions_.begin(), runner->positions_.end(), 0);
  runner->SetAngles(MakeRopeFrequencies(config.rope_base, config.head_dim, RopeDivisors(config)),
                    runner->angles_);
  if (config.window_rope_base > 0)
    runner->SetAngles(MakeRopeFrequencies(config.window_rope_base, config.head_dim), runner->window_angles_);
  return runner;
}

void LayerRunner::SetAngles(const RopeFrequencies& frequencies, Angles& out) const {
  out.cos.resize(positions_.size() * frequencies.steps.size());
  out.sin.resize(out.cos.size());
  RopeAngles(positions_.data(), positions_.size(), frequencies, out.cos.data(), out.sin.data());
}

LayerRunner::Half LayerRunner::AttentionOf(const FloatLayer& layer) {
  return {LinearInput::kAttention, LinearInput::kAttentionOutput, layer.attention_norm,
          layer.attention_output, Find(layer, TensorKind::kAttentionPostNorm)};
}

LayerRunner::Half LayerRunner::FfnOf(const FloatLayer& layer) {
  return {LinearInput::kFfn, LinearInput::kDown, layer.ffn_norm, layer.down,
          Find(layer, TensorKind::kFfnPostNorm)};
}

Status LayerRunner::Run(const FloatLayer& layer, const HiddenStates& from, HiddenStates& to,
                        LayerObserver* observer) {
  RETURN_IF_ERROR(RunHalf(layer, AttentionOf(layer), from, &to, observer));
  return RunFfn(layer, to, &to, observer);
}

Status LayerRunner::Show(const FloatLayer& layer, const HiddenStates& from, LayerObserver& observer) {
  ASSIGN_OR_RETURN(HiddenStates between, from.MakeAnother());
  RETURN_IF_ERROR(RunHalf(layer, AttentionOf(layer), from, &between, &observer));
  return RunFfn(layer, between, nullptr, &observer);
}

Status LayerRunner::RunHalf(const FloatLayer& layer, const Half& half, const HiddenStates& from,
                            HiddenStates* to, LayerObserver* observer) {
  CHECK(from.tokens() == tokens_ && from.width() == config_.hidden_size, from.tokens(), " tokens of width ",
        from.width());
  if (observer == nullptr) return Pass(layer, half, from, to, nullptr);
  RETURN_IF_ERROR(ShowNormalized(half, from, *observer));
  const bool is_shown_first = observer->changes_linears() || to == nullptr;
  RETURN_IF_ERROR(Pass(layer, half, from, is_shown_first ? nullptr : to, observer));
  RETURN_IF_ERROR(observer->OnReady({half.last}));
  return is_shown_first && to != nullptr ? Pass(layer, half, from, to, nullptr) : Status();
}

Status LayerRunner::ShowNormalized(const Half& half, const HiddenStates& from, LayerObserver& observer) {
  for (size_t begin = 0; begin < tokens_; begin += kPieceTokens) {
    RETURN_IF_ERROR(ReadPiece(from, begin));
    observer.OnStream(half.first, stream_);
    Normalize(half.norm);
    RETURN_IF_ERROR(observer.OnInputs({half.first}, normalized_, count_));
  }
  return observer.OnReady({half.first});
}

// Adds what put(out, adds) makes to stream_, by way of the norm if there is one.
template <typename Put>
void LayerRunner::AddSublayer(const std::vector<float>* post_norm, const Put& put) {
  if (post_norm == nullptr) return put(stream_.data(), /*adds=*/true);
  sublayer_.resize(stream_.size());
  put(sublayer_.data(), /*adds=*/false);
  ops_.add_norm({.x = sublayer_.data(),
                 .norm = post_norm->data(),
                 .norm_epsilon = config_.norm_epsilon,
                 .hidden = stream_.data(),
                 .tokens = count_,
                 .width = config_.hidden_size},
                pool_);
}

// Shows what goes into the last linear to the observer, if any, and adds what comes out to the stream, if
// that is wanted.
Status LayerRunner::Pass(const FloatLayer& layer, const Half& half, const HiddenStates& from,
                         HiddenStates* to, LayerObserver* observer) {
  const bool is_attention = half.first == LinearInput::kAttention;
  ASSIGN_OR_RETURN(const PackedMatrices weights,
                   is_attention ? PackedMatrices::Make({&layer.query, &layer.key, &layer.value}, ops_, pool_)
                                : PackedMatrices::Make({&layer.gate, &layer.up}, ops_, pool_));
  std::optional<PackedMatrices> last;
  if (to != nullptr) {
    ASSIGN_OR_RETURN(last, PackedMatrices::Make({&half.last_linear}, ops_, pool_));
  }
  for (size_t begin = 0; begin < tokens_; begin += kPieceTokens) {
    RETURN_IF_ERROR(ReadPiece(from, begin));
    Normalize(half.norm);
    if (is_attention) {
      Attend(layer, weights, begin);
    } else {
      Gate(layer, weights);
    }
    if (observer != nullptr) RETURN_IF_ERROR(observer->OnInputs({half.last}, inner_, count_));
    if (to == nullptr) continue;
    AddSublayer(half.post_norm, [&](float* out, bool adds) {
      const GemmPart parts[] = {{(*last)[0], out, adds}};
      ops_.gemm({.x = inner_.data(), .tokens = count_, .parts = parts}, pool_);
    });
    RETURN_IF_ERROR(to->Write(begin, stream_));
  }
  return Status();
}

Status LayerRunner::RunFfn(const FloatLayer& layer, const HiddenStates& from, HiddenStates* to,
                           LayerObserver* observer) {
  if (layer.experts.empty()) return RunHalf(layer, FfnOf(layer), from, to, observer);
  if (observer != nullptr) RETURN_IF_ERROR(ShowExperts(layer, from, *observer));
  return to != nullptr ? PassExperts(layer, from, *to) : Status();
}

Status LayerRunner::ShowExperts(const FloatLayer& layer, const HiddenStates& from, LayerObserver& observer) {
  ExpertGroups groups;  // of all tokens
  {
    std::vector<uint32_t> chosen;
    chosen.reserve(tokens_ * config_.experts_per_token);
    ASSIGN_OR_RETURN(const PackedMatrices router, PackedMatrices::Make({&layer.router}, ops_, pool_));
    for (size_t begin = 0; begin < tokens_; begin += kPieceTokens) {
      RETURN_IF_ERROR(ReadPiece(from, begin));
      observer.OnStream(LinearInput::kFfn, stream_);
      Normalize(layer.ffn_norm);
      Route(router[0]);
      chosen.insert(chosen.end(), chosen_.begin(), chosen_.end());
    }
    GroupPairs(chosen, layer.experts.size(), groups);
  }
  groups.places = {};  // its memory
  for (uint32_t expert = 0; expert < layer.experts.size(); ++expert) {
    const std::span<const uint32_t> pairs = groups.pairs;
    RETURN_IF_ERROR(ShowExpert(layer, expert, pairs.subspan(groups.begin[expert], groups.TokensOf(expert)),
                               from, observer));
  }
  return Status();
}

Status LayerRunner::ShowExpert(const FloatLayer& layer, uint32_t expert, std::span<const uint32_t> pairs,
                               const HiddenStates& from, LayerObserver& observer) {
  const FeedForward& ffn = layer.experts[expert];
  const LayerInput first = {LinearInput::kFfn, expert}, last = {LinearInput::kDown, expert};
  const auto each_piece = [&](const auto& show) {
    for (size_t begin = 0; begin < pairs.size(); begin += kPieceTokens) {
      const size_t count = std::min(kPieceTokens, pairs.size() - begin);
      RETURN_IF_ERROR(ReadRows(from, pairs.subspan(begin, count)));
      Normalize(layer.ffn_norm);
      RETURN_IF_ERROR(show());
    }
    return Status();
  };
  RETURN_IF_ERROR(each_piece([&] { return observer.OnInputs(first, normalized_, count_); }));
  RETURN_IF_ERROR(observer.OnReady(first));
  ASSIGN_OR_RETURN(const PackedMatrices weights, PackedMatrices::Make({&ffn.gate, &ffn.up}, ops_, pool_));
  RETURN_IF_ERROR(each_piece([&] {
    Gate(ffn, weights);
    return observer.OnInputs(last, inner_, count_);
  }));
  return observer.OnReady(last);
}

// As Transformer does it: a token's experts are added in the order in which they were chosen.
Status LayerRunner::PassExperts(const FloatLayer& layer, const HiddenStates& from, HiddenStates& to) {
  const size_t per_token = config_.experts_per_token;
  std::vector<const FloatMatrix*> matrices[3];
  for (const FeedForward& ffn : layer.experts) {
    matrices[0].push_back(&ffn.gate);
    matrices[1].push_back(&ffn.up);
    matrices[2].push_back(&ffn.down);
  }
  ASSIGN_OR_RETURN(const PackedMatrices router, PackedMatrices::Make({&layer.router}, ops_, pool_));
  ASSIGN_OR_RETURN(const PackedMatrices gates, PackedMatrices::Make(matrices[0], ops_, pool_));
  ASSIGN_OR_RETURN(const PackedMatrices ups, PackedMatrices::Make(matrices[1], ops_, pool_));
  ASSIGN_OR_RETURN(const PackedMatrices downs, PackedMatrices::Make(matrices[2], ops_, pool_));
  ExpertGroups groups;
  for (size_t begin = 0; begin < tokens_; begin += kPieceTokens) {
    RETURN_IF_ERROR(ReadPiece(from, begin));
    Normalize(layer.ffn_norm);
    Route(router[0]);
    GroupPairs(chosen_, layer.experts.size(), groups);
    inner_.resize(chosen_.size() * gates[0].rows);
    MultiplyGatedExperts(ops_,
                         {.groups = groups,
                          .per_token = per_token,
                          .x = normalized_.data(),
                          .gates = gates.all(),
                          .ups = ups.all(),
                          .gate = config_.gate,
                          .out = inner_.data()},
                         gathered_, pool_);
    expert_rows_.resize(chosen_.size() * config_.hidden_size);
    MultiplyExperts(
        ops_, {.groups = groups, .x = inner_.data(), .weights = downs.all(), .out = expert_rows_.data()},
        pool_);
    AddSublayer(Find(layer, TensorKind::kFfnPostNorm), [&](float* out, bool adds) {
      CombineExperts({.groups = groups,
                      .tokens = count_,
                      .per_token = per_token,
                      .width = config_.hidden_size,
                      .rows = expert_rows_.data(),
                      .weights = expert_weights_.data(),
                      .out = out,
                      .add_to_out = adds},
                     pool_);
    });
    RETURN_IF_ERROR(to.Write(begin, stream_));
  }
  return Status();
}

void LayerRunner::Route(const GemmWeights& router) {
  router_logits_.resize(count_ * router.rows);
  chosen_.resize(count_ * config_.experts_per_token);
  expert_weights_.resize(chosen_.size());
  const GemmPart parts[] = {{router, router_logits_.data()}};
  ops_.gemm({.x = normalized_.data(), .tokens = count_, .parts = parts}, pool_);
  ops_.route_experts({.logits = router_logits_.data(),
                      .tokens = count_,
                      .experts = router.rows,
                      .per_token = config_.experts_per_token,
                      .normalizes = config_.normalizes_experts,
                      .chosen = chosen_.data(),
                      .weights = expert_weights_.data()},
                     pool_);
}

Status LayerRunner::ReadPiece(const HiddenStates& from, size_t begin) {
  count_ = std::min(kPieceTokens, tokens_ - begin);
  stream_.resize(count_ * config_.hidden_size);
  return from.Read(begin, stream_);
}

Status LayerRunner::ReadRows(const HiddenStates& from, std::span<const uint32_t> pairs) {
  const size_t width = config_.hidden_size;
  count_ = pairs.size();
  stream_.resize(count_ * width);
  for (size_t i = 0; i < count_; ++i) {
    const size_t token = pairs[i] / config_.experts_per_token;
    RETURN_IF_ERROR(from.Read(token, std::span(stream_).subspan(i * width, width)));
  }
  return Status();
}

// x[i] / sqrt(mean(x^2) + epsilon) * norm[i]
void LayerRunner::Normalize(const std::vector<float>& norm) {
  const size_t width = config_.hidden_size;
  normalized_.resize(count_ * width);
  pool_.ParallelFor(count_, /*grain=*/16, [&](size_t first, size_t end) {
    for (size_t row = first; row < end; ++row) {
      const float* x = stream_.data() + row * width;
      double squares = 0;
      for (size_t i = 0; i < width; ++i) squares += double{x[i]} * x[i];
      const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + config_.norm_epsilon);
      float* out = normalized_.data() + row * width;
      for (size_t i = 0; i < width; ++i) out[i] = static_cast<float>(x[i] * scale * norm[i]);
    }
  });
}

// The piece has the end of a sequence, whole ones and the start of another; each writes its keys and values
// over those of the one before.
void LayerRunner::Attend(const FloatLayer& layer, const PackedMatrices& weights, size_t begin) {
  const size_t width = layer.query.rows, kv_width = layer.key.rows;
  CHECK(width <= size_t{config_.heads} * config_.head_dim &&
            kv_width <= size_t{config_.kv_heads} * config_.head_dim,
        "a layer of another model");
  query_.resize(count_ * width);
  key_.resize(count_ * kv_width);
  value_.resize(count_ * kv_width);
  inner_.resize(count_ * width);
  const GemmPart parts[] = {
      {weights[0], query_.data()}, {weights[1], key_.data()}, {weights[2], value_.data()}};
  ops_.gemm({.x = normalized_.data(), .tokens = count_, .parts = parts}, pool_);
  auto sequence = static_cast<size_t>(std::ranges::upper_bound(starts_, begin) - starts_.begin()) - 1;
  for (size_t row = 0; row < count_; ++sequence) {
    const size_t position = begin + row - starts_[sequence];
    const size_t count = std::min(sequences_[sequence].size() - position, count_ - row);
    AttendPart(layer, row, position, count);
    row += count;
  }
}

// `count` tokens of a sequence from `position` on, which begin at `row` of the piece; those before them have
// left their keys and values.
void LayerRunner::AttendPart(const FloatLayer& layer, size_t row, size_t position, size_t count) {
  const size_t width = layer.query.rows, kv_width = layer.key.rows, pairs = config_.head_dim / 2;
  const Angles& angles = config_.HasWindowRope(layer.number) ? window_angles_ : angles_;
  const PagedTokens batch{.positions = positions_.data() + position,
                          .block_tables = tables_.data(),
                          .tokens = count,
                          .kv_heads = kv_width / config_.head_dim,
                          .head_dim = config_.head_dim,
                          .blocks = blocks_.size(),
                          .block_tokens = kBlockTokens};
  ops_.rope_kv({.batch = batch,
                .q = query_.data() + row * width,
                .k = key_.data() + row * kv_width,
                .v = value_.data() + row * kv_width,
                .cos = angles.cos.data() + position * pairs,
                .sin = angles.sin.data() + position * pairs,
                .heads = width / config_.head_dim,
                .neighbours = config_.rope_pairing == RopePairing::kNeighbours,
                .kv = kv_->layer(0),
                .q_bias = Data(layer, TensorKind::kQueryBias),
                .k_bias = Data(layer, TensorKind::kKeyBias),
                .v_bias = Data(layer, TensorKind::kValueBias),
                .q_norm = Data(layer, TensorKind::kQueryNorm),
                .k_norm = Data(layer, TensorKind::kKeyNorm),
                .norm_epsilon = config_.norm_epsilon},
               pool_);
  ops_.paged_attention({.batch = batch,
                        .q = query_.data() + row * width,
                        .out = inner_.data() + row * width,
                        .kv = kv_->layer(0),
                        .heads = width / config_.head_dim,
                        .scale = config_.AttentionScale(),
                        .window = config_.Window(layer.number),
                        .softcap = config_.attention_softcap},
                       pool_);
}

void LayerRunner::Gate(const FeedForward& ffn, const PackedMatrices& weights) {
  inner_.resize(count_ * ffn.gate.rows);
  const GemmPart parts[] = {{weights[0], inner_.data()}, {weights[1]}};
  ops_.gemm({.x = normalized_.data(), .tokens = count_, .parts = parts, .gated = true, .gate = config_.gate},
            pool_);
}

}  // namespace terrace
