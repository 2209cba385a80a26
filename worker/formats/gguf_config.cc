#include "worker/formats/gguf_config.h"

#include <cfloat>
#include <cmath>
#include <optional>
#include <utility>

#include "base/json.h"
#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

constexpr std::string_view kReason = "bad_hparam";

// A whole number from 1 to `limit`.
StatusOr<uint32_t> Count(const GgufMetadata& metadata, std::string_view key, uint32_t limit,
                         std::optional<uint32_t> fallback = {}) {
  if (fallback && !metadata.Has(key)) return *fallback;
  ASSIGN_OR_RETURN(const int64_t value, metadata.Integer(key));
  if (value < 1 || value > limit)
    return metadata.Error(kReason, key, Concat(value, " is not in 1 to ", limit));
  return static_cast<uint32_t>(value);
}

StatusOr<float> Number(const GgufMetadata& metadata, std::string_view key,
                       std::optional<float> fallback = {}) {
  if (fallback && !metadata.Has(key)) return *fallback;
  ASSIGN_OR_RETURN(const double value, metadata.Float(key));
  if (std::abs(value) > FLT_MAX) return metadata.Error(kReason, key, "is too large");
  return static_cast<float>(value);
}

// The size of all layers, or an array with that of each (as llama.cpp has it).
Status ReadFfnSizes(const GgufMetadata& metadata, ModelConfig& config) {
  constexpr std::string_view kKey = "llama.feed_forward_length";
  if (!metadata.Has(kKey) || !metadata.values().at(kKey).is_array) {
    ASSIGN_OR_RETURN(config.ffn_size, Count(metadata, kKey, kMaxFfn));
    return Status();
  }
  ASSIGN_OR_RETURN(const std::vector<int64_t> values, metadata.Integers(kKey));
  if (values.size() != config.layers)
    return metadata.Error(kReason, kKey, Concat(values.size(), " sizes for ", config.layers, " layers"));
  std::vector<uint32_t> sizes;
  for (const int64_t value : values) {
    if (value < 1 || value > kMaxFfn)
      return metadata.Error(kReason, kKey, Concat(value, " is not in 1 to ", kMaxFfn));
    sizes.push_back(static_cast<uint32_t>(value));
  }
  SetFfnSizes(std::move(sizes), config);
  return Status();
}

GgufField FfnSizesField(const ModelConfig& config) {
  if (config.ffn_sizes.empty()) return GgufU32(config.ffn_size);
  return GgufInts(std::vector<int32_t>(config.ffn_sizes.begin(), config.ffn_sizes.end()));
}

Status CheckArchitecture(const GgufMetadata& metadata) {
  constexpr std::string_view kKey = "general.architecture";
  ASSIGN_OR_RETURN(const std::string_view architecture, metadata.String(kKey));
  if (architecture == "llama") return Status();
  const Json shown = std::string(architecture.substr(0, 64));
  return metadata.Error("unsupported_architecture", kKey,
                        Concat(ToJsonText(shown), " is not supported; supported is \"llama\""));
}

// Settings that would change the results and are not implemented. Silence about them would be wrong answers.
Status CheckUnsupported(const GgufMetadata& metadata) {
  if (metadata.Has("split.count")) {
    ASSIGN_OR_RETURN(const int64_t parts, metadata.Integer("split.count"));
    if (parts > 1)
      return metadata.Error("bad_split", "split.count",
                            Concat("one of ", parts, " parts; merge them into one file first"));
  }
  if (metadata.Has("llama.expert_count")) {
    ASSIGN_OR_RETURN(const int64_t experts, metadata.Integer("llama.expert_count"));
    if (experts != 0) return metadata.Error(kReason, "llama.expert_count", "experts are not supported");
  }
  constexpr std::string_view kScaling = "llama.rope.scaling.type";
  if (metadata.Has(kScaling)) {
    ASSIGN_OR_RETURN(const std::string_view scaling, metadata.String(kScaling));
    if (scaling != "none") return metadata.Error(kReason, kScaling, "RoPE scaling is not supported");
  }
  constexpr std::string_view kLinear = "llama.rope.scale_linear";  // what files had before rope.scaling
  ASSIGN_OR_RETURN(const float linear, Number(metadata, kLinear, 1));
  if (linear != 1) return metadata.Error(kReason, kLinear, "RoPE scaling is not supported");
  return Status();
}

StatusOr<uint32_t> HeadDim(const GgufMetadata& metadata, const ModelConfig& config) {
  constexpr std::string_view kKey = "llama.attention.key_length";
  if (!metadata.Has(kKey) && config.hidden_size % config.heads != 0)
    return metadata.Error(kReason, "llama.attention.head_count",
                          Concat(config.heads, " does not divide embedding_length ", config.hidden_size));
  ASSIGN_OR_RETURN(const uint32_t head_dim,
                   Count(metadata, kKey, kMaxHeadDim, config.hidden_size / config.heads));
  for (const std::string_view key : {"llama.attention.value_length", "llama.rope.dimension_count"}) {
    ASSIGN_OR_RETURN(const uint32_t length, Count(metadata, key, kMaxHeadDim, head_dim));
    if (length != head_dim)
      return metadata.Error(kReason, key, Concat(length, " differs from the head size ", head_dim));
  }
  return head_dim;
}

StatusOr<ModelConfig> Parse(const GgufFile& gguf) {
  const GgufMetadata& metadata = gguf.metadata;
  RETURN_IF_ERROR(CheckArchitecture(metadata));
  RETURN_IF_ERROR(CheckUnsupported(metadata));

  ModelConfig config = {.family = "llama",
                        .name = "",
                        .names = NameScheme::kGguf,
                        .rope_pairing = RopePairing::kNeighbours,
                        .warnings = {}};
  if (metadata.Has("general.name")) {
    ASSIGN_OR_RETURN(const std::string_view name, metadata.String("general.name"));
    config.name = name;
  }
  if (metadata.Has("llama.vocab_size")) {
    ASSIGN_OR_RETURN(config.vocab_size, Count(metadata, "llama.vocab_size", kMaxVocab));
  } else {
    constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
    if (!metadata.Has(kTokens)) return metadata.Strings(kTokens).status();
    config.vocab_size = static_cast<uint32_t>(metadata.values().at(kTokens).count);
  }
  ASSIGN_OR_RETURN(config.context_length, Count(metadata, "llama.context_length", kMaxContext));
  ASSIGN_OR_RETURN(config.hidden_size, Count(metadata, "llama.embedding_length", kMaxHidden));
  ASSIGN_OR_RETURN(config.layers, Count(metadata, "llama.block_count", kMaxLayers));
  ASSIGN_OR_RETURN(config.heads, Count(metadata, "llama.attention.head_count", kMaxHeads));
  ASSIGN_OR_RETURN(config.kv_heads,
                   Count(metadata, "llama.attention.head_count_kv", kMaxHeads, config.heads));
  ASSIGN_OR_RETURN(config.head_dim, HeadDim(metadata, config));
  RETURN_IF_ERROR(ReadFfnSizes(metadata, config));
  ASSIGN_OR_RETURN(config.norm_epsilon, Number(metadata, "llama.attention.layer_norm_rms_epsilon"));
  ASSIGN_OR_RETURN(config.rope_base, Number(metadata, "llama.rope.freq_base", 10000));
  config.tied_embeddings = !gguf.weights->Find(TensorName(NameScheme::kGguf, TensorKind::kOutput)).ok();
  return config;
}

// About the value of `key`, or of the key that it follows from when the file does not have it.
Status ValueError(const GgufMetadata& metadata, std::string_view key, std::string_view message) {
  if (metadata.Has(key)) return metadata.Error(kReason, key, message);
  const std::string_view source =
      key == "llama.vocab_size" ? "tokenizer.ggml.tokens" : "llama.attention.head_count";
  return metadata.Error(kReason, source, Concat(key, " follows from it: ", message));
}

}  // namespace

StatusOr<ModelConfig> ParseGgufConfig(const GgufFile& gguf, const std::string& file) {
  auto config = Parse(gguf);
  if (!config.ok()) return Annotate(config.status(), file);
  RETURN_IF_ERROR(Annotate(ValidateModelConfig(*config,
                                               [&](std::string_view key, std::string_view message) {
                                                 return ValueError(gguf.metadata, key, message);
                                               }),
                           file));
  return config;
}

std::vector<GgufKey> GgufConfigKeys(const ModelConfig& config) {
  std::vector<GgufKey> keys = {{"general.architecture", GgufString(config.family)}};
  if (!config.name.empty()) keys.push_back({"general.name", GgufString(config.name)});
  const std::vector<GgufKey> more = {
      {"llama.vocab_size", GgufU32(config.vocab_size)},
      {"llama.context_length", GgufU32(config.context_length)},
      {"llama.embedding_length", GgufU32(config.hidden_size)},
      {"llama.block_count", GgufU32(config.layers)},
      {"llama.feed_forward_length", FfnSizesField(config)},
      {"llama.rope.dimension_count", GgufU32(config.head_dim)},
      {"llama.rope.freq_base", GgufF32(config.rope_base)},
      {"llama.attention.head_count", GgufU32(config.heads)},
      {"llama.attention.head_count_kv", GgufU32(config.kv_heads)},
      {"llama.attention.key_length", GgufU32(config.head_dim)},
      {"llama.attention.value_length", GgufU32(config.head_dim)},
      {"llama.attention.layer_norm_rms_epsilon", GgufF32(config.norm_epsilon)},
  };
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

}  // namespace terrace
