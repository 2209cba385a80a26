// The tensors of a Llama-family model: what each is called in a file, its shape, and which ones a model must
// have. Pure functions of a ModelConfig.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/formats/model_config.h"
#include "worker/tensor/tensor.h"

namespace terrace {

enum class TensorKind : uint8_t {
  kEmbedding,
  kOutput,  // absent when embeddings are tied
  kFinalNorm,
  // One of each per layer:
  kAttentionNorm,
  kQuery,
  kKey,
  kValue,
  kAttentionOutput,
  kFfnNorm,
  kGate,
  kUp,
  kDown,
};

constexpr bool IsPerLayer(TensorKind kind) { return kind >= TensorKind::kAttentionNorm; }
constexpr bool IsNorm(TensorKind kind) {
  return kind == TensorKind::kFinalNorm || kind == TensorKind::kAttentionNorm || kind == TensorKind::kFfnNorm;
}

// "model.layers.3.self_attn.q_proj.weight" or "blk.3.attn_q.weight"; `layer` counts for kinds per layer only.
std::string TensorName(NameScheme scheme, TensorKind kind, uint32_t layer = 0);

// Matrices are [outputs, inputs], norms [hidden]. `layer` counts for kinds per layer only.
Shape TensorShape(const ModelConfig& config, TensorKind kind, uint32_t layer);

struct TensorRequirement {
  TensorKind kind;
  uint32_t layer = 0;
  std::string name;
  Shape shape;
};

// Every tensor the model needs, in the order the forward pass meets them.
std::vector<TensorRequirement> RequiredTensors(const ModelConfig& config);

}  // namespace terrace
