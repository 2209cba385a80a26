#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

struct Names {
  std::string_view hugging_face, gguf;  // per layer: what follows "model.layers.N." and "blk.N."
};

Names NamesOf(TensorKind kind) {
  switch (kind) {
    case TensorKind::kEmbedding:
      return {"model.embed_tokens.weight", "token_embd.weight"};
    case TensorKind::kOutput:
      return {"lm_head.weight", "output.weight"};
    case TensorKind::kFinalNorm:
      return {"model.norm.weight", "output_norm.weight"};
    case TensorKind::kAttentionNorm:
      return {"input_layernorm.weight", "attn_norm.weight"};
    case TensorKind::kQuery:
      return {"self_attn.q_proj.weight", "attn_q.weight"};
    case TensorKind::kKey:
      return {"self_attn.k_proj.weight", "attn_k.weight"};
    case TensorKind::kValue:
      return {"self_attn.v_proj.weight", "attn_v.weight"};
    case TensorKind::kAttentionOutput:
      return {"self_attn.o_proj.weight", "attn_output.weight"};
    case TensorKind::kFfnNorm:
      return {"post_attention_layernorm.weight", "ffn_norm.weight"};
    case TensorKind::kGate:
      return {"mlp.gate_proj.weight", "ffn_gate.weight"};
    case TensorKind::kUp:
      return {"mlp.up_proj.weight", "ffn_up.weight"};
    case TensorKind::kDown:
      return {"mlp.down_proj.weight", "ffn_down.weight"};
  }
  return {};
}

}  // namespace

std::string TensorName(NameScheme scheme, TensorKind kind, uint32_t layer) {
  const Names names = NamesOf(kind);
  const bool is_gguf = scheme == NameScheme::kGguf;
  const std::string_view name = is_gguf ? names.gguf : names.hugging_face;
  if (!IsPerLayer(kind)) return std::string(name);
  return Concat(is_gguf ? "blk." : "model.layers.", layer, ".", name);
}

Shape TensorShape(const ModelConfig& config, TensorKind kind, uint32_t layer) {
  const uint64_t hidden = config.hidden_size;
  const uint64_t queries = uint64_t{config.heads} * config.head_dim;
  const uint64_t keys = uint64_t{config.kv_heads} * config.head_dim;
  switch (kind) {
    case TensorKind::kEmbedding:
    case TensorKind::kOutput:
      return {config.vocab_size, hidden};
    case TensorKind::kFinalNorm:
    case TensorKind::kAttentionNorm:
    case TensorKind::kFfnNorm:
      return {hidden};
    case TensorKind::kQuery:
      return {queries, hidden};
    case TensorKind::kKey:
    case TensorKind::kValue:
      return {keys, hidden};
    case TensorKind::kAttentionOutput:
      return {hidden, queries};
    case TensorKind::kGate:
    case TensorKind::kUp:
      return {config.FfnSize(layer), hidden};
    case TensorKind::kDown:
      return {hidden, config.FfnSize(layer)};
  }
  return {};
}

std::vector<TensorRequirement> RequiredTensors(const ModelConfig& config) {
  std::vector<TensorRequirement> required;
  const auto add = [&](TensorKind kind, uint32_t layer = 0) {
    required.push_back(
        {kind, layer, TensorName(config.names, kind, layer), TensorShape(config, kind, layer)});
  };
  add(TensorKind::kEmbedding);
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    for (const TensorKind kind : {TensorKind::kAttentionNorm, TensorKind::kQuery, TensorKind::kKey,
                                  TensorKind::kValue, TensorKind::kAttentionOutput, TensorKind::kFfnNorm,
                                  TensorKind::kGate, TensorKind::kUp, TensorKind::kDown})
      add(kind, layer);
  }
  add(TensorKind::kFinalNorm);
  if (!config.tied_embeddings) add(TensorKind::kOutput);
  return required;
}

}  // namespace terrace
