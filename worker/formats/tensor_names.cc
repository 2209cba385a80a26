#include "worker/formats/tensor_names.h"

#include <optional>

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
    case TensorKind::kRouter:
      return {"mlp.gate.weight", "ffn_gate_inp.weight"};
    case TensorKind::kGate:
      return {"mlp.gate_proj.weight", "ffn_gate.weight"};
    case TensorKind::kUp:
      return {"mlp.up_proj.weight", "ffn_up.weight"};
    case TensorKind::kDown:
      return {"mlp.down_proj.weight", "ffn_down.weight"};
  }
  return {};
}

std::string NameIn(NameScheme scheme, std::string_view name, TensorKind kind, uint32_t layer) {
  if (!IsPerLayer(kind)) return std::string(name);
  return Concat(scheme == NameScheme::kGguf ? "blk." : "model.layers.", layer, ".", name);
}

std::string NameIn(NameScheme scheme, const Names& names, TensorKind kind, uint32_t layer) {
  return NameIn(scheme, scheme == NameScheme::kGguf ? names.gguf : names.hugging_face, kind, layer);
}

// What follows "model.layers.N." and "blk.N.". No expert: of all of them.
std::string ExpertName(const ModelConfig& config, TensorKind kind, std::optional<uint32_t> expert) {
  struct ExpertNames {
    std::string_view mixtral, others, gguf;
  };
  const ExpertNames names = kind == TensorKind::kGate ? ExpertNames{"w1", "gate_proj", "ffn_gate"}
                            : kind == TensorKind::kUp ? ExpertNames{"w3", "up_proj", "ffn_up"}
                                                      : ExpertNames{"w2", "down_proj", "ffn_down"};
  if (config.names == NameScheme::kGguf)
    return Concat(names.gguf, expert ? Concat(".", *expert) : "_exps", ".weight");
  const bool is_mixtral = config.family == "mixtral";
  return Concat(is_mixtral ? "block_sparse_moe.experts." : "mlp.experts.",
                expert ? std::to_string(*expert) : "*", ".", is_mixtral ? names.mixtral : names.others,
                ".weight");
}

}  // namespace

std::string TensorName(const ModelConfig& config, TensorKind kind, uint32_t layer, uint32_t expert) {
  if (config.experts > 0 && IsPerExpert(kind))
    return NameIn(config.names, ExpertName(config, kind, expert), kind, layer);
  if (kind == TensorKind::kRouter && config.names == NameScheme::kHuggingFace && config.family == "mixtral")
    return NameIn(config.names, "block_sparse_moe.gate.weight", kind, layer);
  return NameIn(config.names, NamesOf(kind, config.has_post_norms), kind, layer);
}

std::string NameOfAllExperts(const ModelConfig& config, TensorKind kind, uint32_t layer) {
  if (config.experts == 0 || !IsPerExpert(kind)) return TensorName(config, kind, layer);
  return NameIn(config.names, ExpertName(config, kind, std::nullopt), kind, layer);
}

std::string TensorName(NameScheme scheme, TensorKind kind, uint32_t layer) {
  CHECK(!IsVector(kind) && kind != TensorKind::kRouter, "the name depends on the model");
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
    case TensorKind::kRouter:
      return {config.experts, hidden};
    case TensorKind::kGate:
    case TensorKind::kUp:
      return {config.FfnSize(layer), hidden};
    case TensorKind::kDown:
      return {hidden, config.FfnSize(layer)};
  }
  return {};
}

std::vector<LayerTensor> LayerTensors(const ModelConfig& config) {
  std::vector<LayerTensor> tensors;
  const auto add = [&](std::initializer_list<TensorKind> kinds) {
    for (const TensorKind kind : kinds) tensors.push_back({kind});
  };
  add({TensorKind::kAttentionNorm, TensorKind::kQuery, TensorKind::kKey, TensorKind::kValue});
  if (config.has_attention_bias) add({TensorKind::kQueryBias, TensorKind::kKeyBias, TensorKind::kValueBias});
  if (config.has_head_norms) add({TensorKind::kQueryNorm, TensorKind::kKeyNorm});
  add({TensorKind::kAttentionOutput});
  if (config.has_post_norms) add({TensorKind::kAttentionPostNorm});
  add({TensorKind::kFfnNorm});
  if (config.experts > 0) add({TensorKind::kRouter});
  for (const TensorKind kind : {TensorKind::kGate, TensorKind::kUp, TensorKind::kDown}) {
    for (uint32_t expert = 0; expert < config.FfnCount(); ++expert) tensors.push_back({kind, expert});
  }
  if (config.has_post_norms) add({TensorKind::kFfnPostNorm});
  return tensors;
}

std::vector<TensorRequirement> RequiredTensors(const ModelConfig& config) {
  std::vector<TensorRequirement> required;
  const auto add = [&](TensorKind kind, uint32_t layer = 0, uint32_t expert = 0) {
    required.push_back(
        {kind, layer, expert, TensorName(config, kind, layer, expert), TensorShape(config, kind, layer)});
  };
  add(TensorKind::kEmbedding);
  const std::vector<LayerTensor> tensors = LayerTensors(config);
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    for (const LayerTensor& tensor : tensors) add(tensor.kind, layer, tensor.expert);
  }
  add(TensorKind::kFinalNorm);
  if (!config.tied_embeddings) add(TensorKind::kOutput);
  if (config.names == NameScheme::kGguf && config.rope_scaling.kind == RopeScaling::Kind::kDivisors)
    add(TensorKind::kRopeDivisors);
  return required;
}

}  // namespace terrace
