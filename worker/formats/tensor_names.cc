#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

struct Names {
  std::string_view hugging_face, gguf;  // per layer: what follows "model.layers.N." and "blk.N."
};

// Where there are norms before and behind feed-forward, Hugging Face's names move: what is
// post_attention_layernorm elsewhere, the norm before it, is that of what attention puts out.
Names NamesOf(TensorKind kind, bool has_post_norms) {
  switch (kind) {
    case TensorKind::kEmbedding:
      return {"model.embed_tokens.weight", "token_embd.weight"};
    case TensorKind::kOutput:
      return {"lm_head.weight", "output.weight"};
    case TensorKind::kFinalNorm:
      return {"model.norm.weight", "output_norm.weight"};
    case TensorKind::kRopeDivisors:
      return {"", kRopeDivisorsName};
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
    case TensorKind::kQueryBias:
      return {"self_attn.q_proj.bias", "attn_q.bias"};
    case TensorKind::kKeyBias:
      return {"self_attn.k_proj.bias", "attn_k.bias"};
    case TensorKind::kValueBias:
      return {"self_attn.v_proj.bias", "attn_v.bias"};
    case TensorKind::kQueryNorm:
      return {"self_attn.q_norm.weight", "attn_q_norm.weight"};
    case TensorKind::kKeyNorm:
      return {"self_attn.k_norm.weight", "attn_k_norm.weight"};
    case TensorKind::kAttentionPostNorm:
      return {"post_attention_layernorm.weight", "post_attention_norm.weight"};
    case TensorKind::kFfnNorm:
      return {has_post_norms ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight",
              "ffn_norm.weight"};
    case TensorKind::kFfnPostNorm:
      return {"post_feedforward_layernorm.weight", "post_ffw_norm.weight"};
    case TensorKind::kGate:
      return {"mlp.gate_proj.weight", "ffn_gate.weight"};
    case TensorKind::kUp:
      return {"mlp.up_proj.weight", "ffn_up.weight"};
    case TensorKind::kDown:
      return {"mlp.down_proj.weight", "ffn_down.weight"};
  }
  return {};
}

std::string NameIn(NameScheme scheme, const Names& names, TensorKind kind, uint32_t layer) {
  const bool is_gguf = scheme == NameScheme::kGguf;
  const std::string_view name = is_gguf ? names.gguf : names.hugging_face;
  if (!IsPerLayer(kind)) return std::string(name);
  return Concat(is_gguf ? "blk." : "model.layers.", layer, ".", name);
}

}  // namespace

std::string TensorName(const ModelConfig& config, TensorKind kind, uint32_t layer) {
  return NameIn(config.names, NamesOf(kind, config.has_post_norms), kind, layer);
}

std::string TensorName(NameScheme scheme, TensorKind kind, uint32_t layer) {
  CHECK(!IsVector(kind), "the name of a vector depends on its model");
  return NameIn(scheme, NamesOf(kind, /*has_post_norms=*/false), kind, layer);
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
    case TensorKind::kAttentionPostNorm:
    case TensorKind::kFfnNorm:
    case TensorKind::kFfnPostNorm:
      return {hidden};
    case TensorKind::kQueryBias:
      return {queries};
    case TensorKind::kKeyBias:
    case TensorKind::kValueBias:
      return {keys};
    case TensorKind::kQueryNorm:
    case TensorKind::kKeyNorm:
      return {config.head_dim};
    case TensorKind::kRopeDivisors:
      return {config.head_dim / 2};
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

std::vector<TensorKind> LayerTensors(const ModelConfig& config) {
  std::vector<TensorKind> kinds = {TensorKind::kAttentionNorm, TensorKind::kQuery, TensorKind::kKey,
                                   TensorKind::kValue};
  const auto add = [&](std::initializer_list<TensorKind> more) {
    for (const TensorKind kind : more) kinds.push_back(kind);
  };
  if (config.has_attention_bias) add({TensorKind::kQueryBias, TensorKind::kKeyBias, TensorKind::kValueBias});
  if (config.has_head_norms) add({TensorKind::kQueryNorm, TensorKind::kKeyNorm});
  add({TensorKind::kAttentionOutput});
  if (config.has_post_norms) add({TensorKind::kAttentionPostNorm});
  add({TensorKind::kFfnNorm, TensorKind::kGate, TensorKind::kUp, TensorKind::kDown});
  if (config.has_post_norms) add({TensorKind::kFfnPostNorm});
  return kinds;
}

std::vector<TensorRequirement> RequiredTensors(const ModelConfig& config) {
  std::vector<TensorRequirement> required;
  const auto add = [&](TensorKind kind, uint32_t layer = 0) {
    required.push_back({kind, layer, TensorName(config, kind, layer), TensorShape(config, kind, layer)});
  };
  add(TensorKind::kEmbedding);
  const std::vector<TensorKind> kinds = LayerTensors(config);
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    for (const TensorKind kind : kinds) add(kind, layer);
  }
  add(TensorKind::kFinalNorm);
  if (!config.tied_embeddings) add(TensorKind::kOutput);
  if (config.names == NameScheme::kGguf && config.rope_scaling.kind == RopeScaling::Kind::kDivisors)
    add(TensorKind::kRopeDivisors);
  return required;
}

}  // namespace terrace
