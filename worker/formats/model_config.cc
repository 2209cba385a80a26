#include "worker/formats/model_config.h"

#include <algorithm>
#include <utility>

namespace terrace {

Status ValidateModelConfig(
    const ModelConfig& config,
    const std::function<Status(std::string_view key, std::string_view message)>& error) {
  const struct {
    std::string_view config_json, gguf;  // the key, as the file has it
    uint32_t value, limit;
  } fields[] = {
      {"vocab_size", "llama.vocab_size", config.vocab_size, kMaxVocab},
      {"max_position_embeddings", "llama.context_length", config.context_length, kMaxContext},
      {"hidden_size", "llama.embedding_length", config.hidden_size, kMaxHidden},
      {"num_hidden_layers", "llama.block_count", config.layers, kMaxLayers},
      {"num_attention_heads", "llama.attention.head_count", config.heads, kMaxHeads},
      {"num_key_value_heads", "llama.attention.head_count_kv", config.kv_heads, kMaxHeads},
      {"head_dim", "llama.attention.key_length", config.head_dim, kMaxHeadDim},
      {"intermediate_size", "llama.feed_forward_length", config.ffn_size, kMaxFfn},
  };
  const bool is_gguf = config.names == NameScheme::kGguf;
  const auto fail = [&](std::string_view config_json, std::string_view gguf, const auto&... message) {
    return error(is_gguf ? gguf : config_json, Concat(message...));
  };
  for (const auto& field : fields) {
    if (field.value < 1 || field.value > field.limit)
      return fail(field.config_json, field.gguf, field.value, " is not in 1 to ", field.limit);
  }
  const std::vector<uint32_t>& sizes = config.ffn_sizes;
  if (!sizes.empty() && sizes.size() != config.layers)
    return fail(kFfnSizesKey, "llama.feed_forward_length", sizes.size(), " sizes for ", config.layers,
                " layers");
  for (size_t layer = 0; layer < sizes.size(); ++layer) {
    if (sizes[layer] < 1 || sizes[layer] > config.ffn_size)
      return fail(kFfnSizesKey, "llama.feed_forward_length", "layer ", layer, " has ", sizes[layer],
                  ", which is not in 1 to ", config.ffn_size);
  }
  if (config.heads % config.kv_heads != 0)
    return fail("num_key_value_heads", "llama.attention.head_count_kv", config.kv_heads,
                " does not divide the ", config.heads, " attention heads");
  if (config.head_dim % 2 != 0)
    return fail("head_dim", "llama.attention.key_length", config.head_dim, " is odd, and RoPE rotates pairs");
  if (config.heads * config.head_dim > kMaxHidden)
    return fail("num_attention_heads", "llama.attention.head_count", config.heads, " heads of ",
                config.head_dim, " are more than ", kMaxHidden, " wide");
  // Both comparisons are false for a NaN.
  if (!(config.norm_epsilon > 0 && config.norm_epsilon < 1))
    return fail("rms_norm_eps", "llama.attention.layer_norm_rms_epsilon", config.norm_epsilon,
                " is not between 0 and 1");
  if (!(config.rope_base > 1 && config.rope_base <= 1e12f))
    return fail("rope_theta", "llama.rope.freq_base", config.rope_base, " is not between 1 and 1e12");
  return Status();
}

void SetFfnSizes(std::vector<uint32_t> sizes, ModelConfig& config) {
  config.ffn_size = std::ranges::max(sizes);
  if (std::ranges::min(sizes) == config.ffn_size) sizes.clear();
  config.ffn_sizes = std::move(sizes);
}

}  // namespace terrace
