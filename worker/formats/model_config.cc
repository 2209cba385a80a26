#include "worker/formats/model_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/rope/rope_frequencies.h"
#include "worker/formats/model_family.h"

namespace terrace {
namespace {

// False for a NaN.
bool IsIn(float value, float low, float high) { return value >= low && value <= high; }

// fail(key of config.json, key of GGUF without "", what is wrong)
template <typename Fail>
Status CheckRopeScaling(const ModelConfig& config, const Fail& fail) {
  const RopeScaling& scaling = config.rope_scaling;
  constexpr std::string_view kKey = "rope_scaling", kGguf = "rope.scaling.factor";
  if (!IsIn(scaling.factor, 1, 1e6f))
    return fail(kKey, kGguf, "factor ", scaling.factor, " is not in 1 to 1e6");
  if (scaling.kind == RopeScaling::Kind::kLlama3) {
    if (!IsIn(scaling.low_frequency, 1e-3f, 1e6f) || !IsIn(scaling.high_frequency, 1e-3f, 1e6f) ||
        scaling.low_frequency >= scaling.high_frequency)
      return fail(kKey, kGguf, "low_freq_factor ", scaling.low_frequency, " and high_freq_factor ",
                  scaling.high_frequency, " are not two rising factors in 0.001 to 1e6");
    if (scaling.original_context < 1 || scaling.original_context > kMaxContext)
      return fail(kKey, kGguf, "original_max_position_embeddings ", scaling.original_context,
                  " is not in 1 to ", kMaxContext);
  }
  if (scaling.kind != RopeScaling::Kind::kDivisors) return Status();
  constexpr std::string_view kFactors = "rope_freqs.weight";
  if (scaling.divisors.size() != config.head_dim / 2)
    return fail(kKey, kFactors, scaling.divisors.size(), " factors for heads of ", config.head_dim);
  for (const float divisor : scaling.divisors) {
    if (!IsIn(divisor, 1e-6f, 1e6f))
      return fail(kKey, kFactors, "factor ", divisor, " is not in 1e-6 to 1e6");
  }
  return Status();
}

template <typename Fail>
Status CheckExperts(const ModelConfig& config, const Fail& fail) {
  if (config.experts == 0) return Status();
  const ModelFamily* family = FindModelFamily(config.family);
  const std::string_view key = family == nullptr ? ModelFamily().experts_key : family->experts_key;
  if (config.experts > kMaxExperts)
    return fail(key, "expert_count", config.experts, " is not in 1 to ", kMaxExperts);
  if (uint64_t{config.layers} * config.experts > kMaxExpertsOfAllLayers)
    return fail(key, "expert_count", config.experts, " in each of ", config.layers, " layers are more than ",
                kMaxExpertsOfAllLayers);
  const uint32_t most = std::min(config.experts, kMaxExpertsPerToken);
  if (config.experts_per_token < 1 || config.experts_per_token > most)
    return fail("num_experts_per_tok", "expert_used_count", config.experts_per_token, " is not in 1 to ",
                most);
  if (!config.ffn_sizes.empty())
    return fail(kFfnSizesKey, "feed_forward_length",
                "layers of unequal sizes with experts are not supported");
  return Status();
}

template <typename Fail>
Status CheckSwitches(const ModelConfig& config, const Fail& fail) {
  RETURN_IF_ERROR(CheckRopeScaling(config, fail));
  RETURN_IF_ERROR(CheckExperts(config, fail));
  const struct {
    std::string_view config_json, gguf;
    float value;
  } caps[] = {{"attn_logit_softcapping", "attn_logit_softcapping", config.attention_softcap},
              {"final_logit_softcapping", "final_logit_softcapping", config.logit_softcap}};
  for (const auto& cap : caps) {
    if (cap.value != 0 && !IsIn(cap.value, 1e-3f, 1e6f))
      return fail(cap.config_json, cap.gguf, cap.value, " is not in 0.001 to 1e6");
  }
  if (config.attention_scale != 0 && !IsIn(config.attention_scale, 1e-6f, 1e3f))
    return fail("query_pre_attn_scalar", "attention.scale", "scores times ", config.attention_scale,
                " are not in 1e-6 to 1000 of them");
  if (!config.windows.empty() && config.windows.size() != config.layers)
    return fail("layer_types", "attention.sliding_window_pattern", config.windows.size(), " for ",
                config.layers, " layers");
  for (const uint32_t window : config.windows) {
    if (window > kMaxContext)
      return fail("sliding_window", "attention.sliding_window", window, " is not in 0 to ", kMaxContext);
  }
  if (config.window_rope_base != 0 && !IsIn(config.window_rope_base, 1.001f, 1e12f))
    return fail("rope_local_base_freq", "rope.freq_base_swa", config.window_rope_base,
                " is not between 1 and 1e12");
  return Status();
}

}  // namespace

Status ValidateModelConfig(
    const ModelConfig& config,
    const std::function<Status(std::string_view key, std::string_view message)>& error) {
  const struct {
    std::string_view config_json, gguf;  // the key, as the file has it; GGUF's without the architecture
    uint32_t value, limit;
  } fields[] = {
      {"vocab_size", "vocab_size", config.vocab_size, kMaxVocab},
      {"max_position_embeddings", "context_length", config.context_length, kMaxContext},
      {"hidden_size", "embedding_length", config.hidden_size, kMaxHidden},
      {"num_hidden_layers", "block_count", config.layers, kMaxLayers},
      {"num_attention_heads", "attention.head_count", config.heads, kMaxHeads},
      {"num_key_value_heads", "attention.head_count_kv", config.kv_heads, kMaxHeads},
      {"head_dim", "attention.key_length", config.head_dim, kMaxHeadDim},
      {"intermediate_size", "feed_forward_length", config.ffn_size, kMaxFfn},
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
    return fail(kFfnSizesKey, "feed_forward_length", sizes.size(), " sizes for ", config.layers, " layers");
  for (size_t layer = 0; layer < sizes.size(); ++layer) {
    if (sizes[layer] < 1 || sizes[layer] > config.ffn_size)
      return fail(kFfnSizesKey, "feed_forward_length", "layer ", layer, " has ", sizes[layer],
                  ", which is not in 1 to ", config.ffn_size);
  }
  if (config.heads % config.kv_heads != 0)
    return fail("num_key_value_heads", "attention.head_count_kv", config.kv_heads, " does not divide the ",
                config.heads, " attention heads");
  if (config.head_dim % 2 != 0)
    return fail("head_dim", "attention.key_length", config.head_dim, " is odd, and RoPE rotates pairs");
  if (config.heads * config.head_dim > kMaxHidden)
    return fail("num_attention_heads", "attention.head_count", config.heads, " heads of ", config.head_dim,
                " are more than ", kMaxHidden, " wide");
  // Both comparisons are false for a NaN.
  if (!(config.norm_epsilon > 0 && config.norm_epsilon < 1))
    return fail("rms_norm_eps", "attention.layer_norm_rms_epsilon", config.norm_epsilon,
                " is not between 0 and 1");
  if (!(config.rope_base > 1 && config.rope_base <= 1e12f))
    return fail("rope_theta", "rope.freq_base", config.rope_base, " is not between 1 and 1e12");
  return CheckSwitches(config, fail);
}

float ModelConfig::AttentionScale() const {
  return attention_scale > 0 ? attention_scale : 1 / std::sqrt(static_cast<float>(head_dim));
}

bool IsPlainLlama(const ModelConfig& config) {
  return config.rope_scaling.kind == RopeScaling::Kind::kNone && config.gate == GateFunction::kSilu &&
         !config.has_attention_bias && !config.has_head_norms && !config.has_post_norms &&
         !config.norms_less_one && config.embedding_scale == 1 && config.attention_scale == 0 &&
         config.attention_softcap == 0 && config.logit_softcap == 0 && config.windows.empty() &&
         config.window_rope_base == 0 && config.experts == 0;
}

std::vector<float> RopeDivisors(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  switch (scaling.kind) {
    case RopeScaling::Kind::kNone:
      break;
    case RopeScaling::Kind::kLinear:
      return LinearRopeDivisors(config.head_dim, scaling.factor);
    case RopeScaling::Kind::kLlama3:
      return Llama3RopeDivisors(config.rope_base, config.head_dim,
                                {.factor = scaling.factor,
                                 .low_freq_factor = scaling.low_frequency,
                                 .high_freq_factor = scaling.high_frequency,
                                 .original_context = static_cast<double>(scaling.original_context)});
    case RopeScaling::Kind::kDivisors:
      return scaling.divisors;
  }
  return {};
}

void SetFfnSizes(std::vector<uint32_t> sizes, ModelConfig& config) {
  config.ffn_size = std::ranges::max(sizes);
  if (std::ranges::min(sizes) == config.ffn_size) sizes.clear();
  config.ffn_sizes = std::move(sizes);
}

}  // namespace terrace
