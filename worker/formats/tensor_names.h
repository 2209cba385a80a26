// The tensors of a model: what each is called in a file, its shape, and which ones a model must have. Pure
// functions of a ModelConfig.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "worker/formats/model_config.h"
#include "worker/tensor/tensor.h"

namespace terrace {

enum class TensorKind : uint8_t {
  kEmbedding,
  kOutput,  // absent when embeddings are tied
  kFinalNorm,
  kRopeDivisors,  // of GGUF, with RopeScaling::Kind::kDivisors
  // One of each per layer:
  kAttentionNorm,
  kQuery,
  kKey,
  kValue,
  kQueryBias,  // with has_attention_bias
  kKeyBias,
  kValueBias,
  kQueryNorm,  // with has_head_norms
  kKeyNorm,
  kAttentionOutput,
  kAttentionPostNorm,  // with has_post_norms
  kFfnNorm,
  kRouter,  // with experts: of each token's logits of them
  // One of each per layer or, with experts, per layer and expert:
  kGate,
  kUp,
  kDown,
  kFfnPostNorm,  // with has_post_norms
};

constexpr bool IsPerLayer(TensorKind kind) { return kind >= TensorKind::kAttentionNorm; }
constexpr bool IsNorm(TensorKind kind) {
  switch (kind) {
    case TensorKind::kFinalNorm:
    case TensorKind::kAttentionNorm:
    case TensorKind::kQueryNorm:
    case TensorKind::kKeyNorm:
    case TensorKind::kAttentionPostNorm:
    case TensorKind::kFfnNorm:
    case TensorKind::kFfnPostNorm:
      return true;
    default:
      return false;
  }
}
constexpr bool IsBias(TensorKind kind) {
  return kind == TensorKind::kQueryBias || kind == TensorKind::kKeyBias || kind == TensorKind::kValueBias;
}
// The matrix whose products the bias is added to.
constexpr TensorKind MatrixOfBias(TensorKind bias) {
  return bias == TensorKind::kQueryBias ? TensorKind::kQuery
         : bias == TensorKind::kKeyBias ? TensorKind::kKey
                                        : TensorKind::kValue;
}
constexpr bool IsPerExpert(TensorKind kind) {
  return kind == TensorKind::kGate || kind == TensorKind::kUp || kind == TensorKind::kDown;
}
// Of one dimension.
constexpr bool IsVector(TensorKind kind) {
  return IsNorm(kind) || IsBias(kind) || kind == TensorKind::kRopeDivisors;
}

inline constexpr std::string_view kRopeDivisorsName = "rope_freqs.weight";

// "model.layers.3.self_attn.q_proj.weight" or "blk.3.attn_q.weight"; `layer` counts for kinds per layer, and
// `expert` for kinds per expert of models that have them, alone. What experts have is in GGUF called as its
// first writers did, "blk.3.ffn_up.5.weight"; files since then stack it (expert_stacks.h).
std::string TensorName(const ModelConfig& config, TensorKind kind, uint32_t layer = 0, uint32_t expert = 0);
// That of experts, for all of a layer together: "model.layers.3.mlp.experts.*.up_proj.weight", or the stack
// "blk.3.ffn_up_exps.weight". Of other tensors it is TensorName.
std::string NameOfAllExperts(const ModelConfig& config, TensorKind kind, uint32_t layer);
// Of matrices that all families call alike.
std::string TensorName(NameScheme scheme, TensorKind kind, uint32_t layer = 0);

// Matrices are [outputs, inputs], norms and biases as wide as what they are of. `layer` counts for kinds per
// layer only.
Shape TensorShape(const ModelConfig& config, TensorKind kind, uint32_t layer);

struct LayerTensor {
  TensorKind kind;
  uint32_t expert = 0;
};
// The tensors of a layer, in the order the forward pass meets them; of experts, each kind of all of them.
std::vector<LayerTensor> LayerTensors(const ModelConfig& config);

struct TensorRequirement {
  TensorKind kind;
  uint32_t layer = 0;
  uint32_t expert = 0;
  std::string name;
  Shape shape;
};

// Every tensor the model needs, in the order the forward pass meets them.
std::vector<TensorRequirement> RequiredTensors(const ModelConfig& config);

}  // namespace terrace
