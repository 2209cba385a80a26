#include "worker/formats/gguf_config.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "base/json.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/model_family.h"
#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

constexpr std::string_view kReason = "bad_hparam";

// The keys of an architecture: "block_count" is "llama.block_count" in the file.
class ArchitectureKeys {
 public:
  ArchitectureKeys(const GgufMetadata& metadata, std::string_view architecture)
      : metadata_(metadata), architecture_(architecture) {}

  const GgufMetadata& metadata() const { return metadata_; }
  std::string Whole(std::string_view key) const { return Concat(architecture_, ".", key); }
  bool Has(std::string_view key) const { return metadata_.Has(Whole(key)); }
  Status Error(std::string_view key, const auto&... message) const {
    return metadata_.Error(kReason, Whole(key), Concat(message...));
  }

  // A whole number from 1 to `limit`.
  StatusOr<uint32_t> Count(std::string_view key, uint32_t limit,
                           std::optional<uint32_t> fallback = {}) const {
    if (fallback && !Has(key)) return *fallback;
    ASSIGN_OR_RETURN(const int64_t value, metadata_.Integer(Whole(key)));
    if (value < 1 || value > limit) return Error(key, value, " is not in 1 to ", limit);
    return static_cast<uint32_t>(value);
  }

  StatusOr<float> Number(std::string_view key, std::optional<float> fallback = {}) const {
    if (fallback && !Has(key)) return *fallback;
    ASSIGN_OR_RETURN(const double value, metadata_.Float(Whole(key)));
    if (std::abs(value) > FLT_MAX) return Error(key, "is too large");
    return static_cast<float>(value);
  }

 private:
  const GgufMetadata& metadata_;
  const std::string_view architecture_;
};

// The size of all layers, or an array with that of each (as llama.cpp has it).
Status ReadFfnSizes(const ArchitectureKeys& keys, const ModelFamily& family, ModelConfig& config) {
  if (constexpr std::string_view kOfExpert = "expert_feed_forward_length";
      family.has_expert_width || (config.experts > 0 && keys.Has(kOfExpert))) {
    ASSIGN_OR_RETURN(config.ffn_size, keys.Count(kOfExpert, kMaxFfn));
    return Status();
  }
  constexpr std::string_view kKey = "feed_forward_length";
  const GgufMetadata& metadata = keys.metadata();
  if (!keys.Has(kKey) || !metadata.values().at(keys.Whole(kKey)).is_array) {
    ASSIGN_OR_RETURN(config.ffn_size, keys.Count(kKey, kMaxFfn));
    return Status();
  }
  ASSIGN_OR_RETURN(const std::vector<int64_t> values, metadata.Integers(keys.Whole(kKey)));
  if (values.size() != config.layers)
    return keys.Error(kKey, values.size(), " sizes for ", config.layers, " layers");
  std::vector<uint32_t> sizes;
  for (const int64_t value : values) {
    if (value < 1 || value > kMaxFfn) return keys.Error(kKey, value, " is not in 1 to ", kMaxFfn);
    sizes.push_back(static_cast<uint32_t>(value));
  }
  SetFfnSizes(std::move(sizes), config);
  return Status();
}

GgufField FfnSizesField(const ModelConfig& config) {
  if (config.ffn_sizes.empty()) return GgufU32(config.ffn_size);
  return GgufInts(std::vector<int32_t>(config.ffn_sizes.begin(), config.ffn_sizes.end()));
}

StatusOr<const ModelFamily*> Family(const GgufMetadata& metadata) {
  constexpr std::string_view kKey = "general.architecture";
  ASSIGN_OR_RETURN(const std::string_view architecture, metadata.String(kKey));
  if (const ModelFamily* family = FindGgufFamily(architecture)) return family;
  const Json shown = std::string(architecture.substr(0, 64));
  return metadata.Error("unsupported_architecture", kKey,
                        Concat(ToJsonText(shown), " is not supported; supported are ", GgufArchitectures()));
}

// Settings that would change the results and are not implemented. Silence about them would be wrong answers.
Status CheckUnsupported(const ArchitectureKeys& keys) {
  const GgufMetadata& metadata = keys.metadata();
  if (metadata.Has("split.count")) {
    ASSIGN_OR_RETURN(const int64_t parts, metadata.Integer("split.count"));
    if (parts > 1)
      return metadata.Error("bad_split", "split.count",
                            Concat("one of ", parts, " parts; merge them into one file first"));
  }
  constexpr std::string_view kCausal = "attention.causal", kAttentionFactor = "rope.scaling.attn_factor";
  if (keys.Has(kCausal)) {
    ASSIGN_OR_RETURN(const bool is_causal, keys.metadata().Bool(keys.Whole(kCausal)));
    if (!is_causal) return keys.Error(kCausal, "false is not supported");
  }
  ASSIGN_OR_RETURN(const float attention_factor, keys.Number(kAttentionFactor, 1));
  if (attention_factor != 1)
    return keys.Error(kAttentionFactor, attention_factor, " is not supported; supported is 1");
  // Experts that all tokens go to, groups of experts, layers without any; weights otherwise than by softmax.
  for (const std::string_view key : {"expert_shared_count", "expert_shared_feed_forward_length",
                                     "expert_group_count", "leading_dense_block_count"}) {
    if (!keys.Has(key)) continue;
    ASSIGN_OR_RETURN(const int64_t value, metadata.Integer(keys.Whole(key)));
    if (value != 0) return keys.Error(key, value, " is not supported; supported is 0");
  }
  for (const std::string_view key :
       {"expert_gating_func", "interleave_moe_layer_step", "moe_every_n_layers"}) {
    if (!keys.Has(key)) continue;
    ASSIGN_OR_RETURN(const int64_t value, metadata.Integer(keys.Whole(key)));
    if (value != 1) return keys.Error(key, value, " is not supported; supported is 1");
  }
  constexpr std::string_view kScale = "expert_weights_scale", kNormalizes = "expert_weights_norm";
  ASSIGN_OR_RETURN(const float scale, keys.Number(kScale, 1));
  if (scale != 0 && scale != 1)  // 0 is none
    return keys.Error(kScale, scale, " is not supported; supported is 1");
  if (keys.Has(kNormalizes)) {
    ASSIGN_OR_RETURN(const bool normalizes, metadata.Bool(keys.Whole(kNormalizes)));
    if (!normalizes) return keys.Error(kNormalizes, "false is not supported");
  }
  return Status();
}

// How many there are; and the family, of those of the architecture, that has them or not.
Status ReadExperts(const ArchitectureKeys& keys, const ModelFamily*& family, ModelConfig& config) {
  constexpr std::string_view kCount = "expert_count";
  int64_t experts = 0;
  if (keys.Has(kCount)) {
    ASSIGN_OR_RETURN(experts, keys.metadata().Integer(keys.Whole(kCount)));
    if (experts < 0 || experts > kMaxExperts)
      return keys.Error(kCount, experts, " is not in 0 to ", kMaxExperts);
  }
  const std::string_view architecture = family->gguf;
  family = FindGgufFamily(architecture, experts > 0);
  if (family == nullptr && experts > 0)
    return keys.Error(kCount, "experts are not supported in the architecture ", architecture);
  if (family == nullptr) {
    if (keys.Has(kCount)) return keys.Error(kCount, "0 is not in 1 to ", kMaxExperts);
    return keys.metadata().Integer(keys.Whole(kCount)).status();
  }
  if (experts == 0) return Status();
  config.experts = static_cast<uint32_t>(experts);
  ASSIGN_OR_RETURN(config.experts_per_token, keys.Count("expert_used_count", kMaxExpertsPerToken));
  config.normalizes_experts = true;  // as llama.cpp has both architectures
  return Status();
}

// A kind and a factor, what older files had instead, or a tensor with a divisor for each pair.
Status ReadScaling(const ArchitectureKeys& keys, const WeightSource& weights, ModelConfig& config) {
  constexpr std::string_view kType = "rope.scaling.type", kFactor = "rope.scaling.factor",
                             kOld = "rope.scale_linear";
  RopeScaling& scaling = config.rope_scaling;
  std::string_view kind = "none";
  if (keys.Has(kType)) {
    ASSIGN_OR_RETURN(kind, keys.metadata().String(keys.Whole(kType)));
    if (kind != "none" && kind != "linear")
      return keys.Error(kType, ToJsonText(std::string(kind.substr(0, 64))),
                        R"( is not supported; supported are "none" and "linear")");
  }
  ASSIGN_OR_RETURN(const float old, keys.Number(kOld, 1));
  ASSIGN_OR_RETURN(scaling.factor, keys.Number(kFactor, old));
  if (keys.Has(kType) && kind == "none") scaling.factor = 1;
  if (scaling.factor != 1) scaling.kind = RopeScaling::Kind::kLinear;
  const auto tensor = weights.Find(kRopeDivisorsName);
  if (!tensor.ok()) return Status();
  if (FindModelFamily(config.family)->gguf != "llama")
    return keys.metadata().Error(kReason, "general.architecture",
                                 Concat("has no ", kRopeDivisorsName, ", which is there"));
  if (scaling.kind != RopeScaling::Kind::kNone)
    return keys.Error(keys.Has(kType) ? kType : kOld, "there is ", kRopeDivisorsName, ", too");
  scaling.kind = RopeScaling::Kind::kDivisors;
  if (tensor->dtype == DType::kF32 &&
      tensor->shape == Shape{config.head_dim / 2}) {  // else CheckTensors tells
    scaling.divisors.resize(config.head_dim / 2);
    std::memcpy(scaling.divisors.data(), tensor->data, scaling.divisors.size() * sizeof(float));
  } else {
    scaling.divisors.assign(config.head_dim / 2, 1);
  }
  return Status();
}

StatusOr<uint32_t> HeadDim(const ArchitectureKeys& keys, const ModelConfig& config) {
  constexpr std::string_view kKey = "attention.key_length";
  if (!keys.Has(kKey) && config.hidden_size % config.heads != 0)
    return keys.Error("attention.head_count", config.heads, " does not divide embedding_length ",
                      config.hidden_size);
  ASSIGN_OR_RETURN(const uint32_t head_dim, keys.Count(kKey, kMaxHeadDim, config.hidden_size / config.heads));
  for (const std::string_view key : {"attention.value_length", "rope.dimension_count"}) {
    ASSIGN_OR_RETURN(const uint32_t length, keys.Count(key, kMaxHeadDim, head_dim));
    if (length != head_dim) return keys.Error(key, length, " differs from the head size ", head_dim);
  }
  return head_dim;
}

// The sizes of the published models whose scores are scaled by what a query head's share of the width is,
// instead of by its size; GGUF has no key for it (llama.cpp goes by the layers, too).
constexpr uint32_t kLayersOfGemma2With27B = 46, kLayersOfGemma3With27B = 62;

// What a reader knows of `config` by its family and sizes, without a key, and where a window (0: none) is.
// `pattern`: the last of so many layers is without a window; 0: the family's.
void SetImplied(const ModelFamily& family, uint32_t window, uint32_t pattern, ModelConfig& config) {
  SetSwitches(family, config);
  config.norms_less_one = false;
  config.windows.clear();
  if (pattern == 0) pattern = family.window_pattern;
  for (uint32_t layer = 0; window > 0 && layer < config.layers; ++layer)
    config.windows.push_back(pattern == 0 || (layer + 1) % pattern != 0 ? window : 0);
  config.attention_scale = 0;
  if ((family.name == "gemma2" && config.layers == kLayersOfGemma2With27B) ||
      (family.name == "gemma3_text" && config.layers == kLayersOfGemma3With27B)) {
    config.attention_scale =
        1 / std::sqrt(static_cast<float>(config.hidden_size) / static_cast<float>(config.heads));
  }
}

// The inverse, of windows that one can say.
uint32_t PatternOf(const ModelConfig& config) {
  const auto full = std::ranges::find(config.windows, 0u);
  return static_cast<uint32_t>(full - config.windows.begin()) + 1;
}

Status ReadSwitches(const ArchitectureKeys& keys, const ModelFamily& family, ModelConfig& config) {
  constexpr std::string_view kWindow = "attention.sliding_window",
                             kPattern = "attention.sliding_window_pattern", kCap = "attn_logit_softcapping",
                             kLastCap = "final_logit_softcapping", kWindowBase = "rope.freq_base_swa";
  // llama.cpp has the defaults of Gemma's, but no window of Gemma 3's.
  const bool is_second = family.name == "gemma2";
  uint32_t window = is_second ? family.defaults.window : 0, pattern = 0;
  if (keys.Has(kWindow)) {
    ASSIGN_OR_RETURN(const int64_t value, keys.metadata().Integer(keys.Whole(kWindow)));
    if (value < 0 || value > kMaxContext) return keys.Error(kWindow, value, " is not in 0 to ", kMaxContext);
    window = static_cast<uint32_t>(value);
  }
  if (keys.Has(kPattern)) {
    ASSIGN_OR_RETURN(pattern, keys.Count(kPattern, kMaxLayers));
  }
  SetImplied(family, window, pattern, config);
  ASSIGN_OR_RETURN(config.attention_softcap, keys.Number(kCap, family.defaults.attention_softcap));
  ASSIGN_OR_RETURN(config.logit_softcap, keys.Number(kLastCap, family.defaults.logit_softcap));
  ASSIGN_OR_RETURN(config.window_rope_base, keys.Number(kWindowBase, family.defaults.window_rope_base));
  return Status();
}

StatusOr<ModelConfig> Parse(const GgufFile& gguf) {
  const GgufMetadata& metadata = gguf.metadata;
  ASSIGN_OR_RETURN(const ModelFamily* family, Family(metadata));
  const ArchitectureKeys keys(metadata, family->gguf);
  RETURN_IF_ERROR(CheckUnsupported(keys));

  ModelConfig config;
  RETURN_IF_ERROR(ReadExperts(keys, family, config));
  config.family = family->name;
  config.names = NameScheme::kGguf;
  config.rope_pairing = family->gguf_pairing;
  if (metadata.Has("general.name")) {
    ASSIGN_OR_RETURN(const std::string_view name, metadata.String("general.name"));
    config.name = name;
  }
  if (keys.Has("vocab_size")) {
    ASSIGN_OR_RETURN(config.vocab_size, keys.Count("vocab_size", kMaxVocab));
  } else {
    constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
    if (!metadata.Has(kTokens)) return metadata.Strings(kTokens).status();
    config.vocab_size = static_cast<uint32_t>(metadata.values().at(kTokens).count);
  }
  ASSIGN_OR_RETURN(config.context_length, keys.Count("context_length", kMaxContext));
  ASSIGN_OR_RETURN(config.hidden_size, keys.Count("embedding_length", kMaxHidden));
  ASSIGN_OR_RETURN(config.layers, keys.Count("block_count", kMaxLayers));
  ASSIGN_OR_RETURN(config.heads, keys.Count("attention.head_count", kMaxHeads));
  ASSIGN_OR_RETURN(config.kv_heads, keys.Count("attention.head_count_kv", kMaxHeads, config.heads));
  ASSIGN_OR_RETURN(config.head_dim, HeadDim(keys, config));
  RETURN_IF_ERROR(ReadFfnSizes(keys, *family, config));
  ASSIGN_OR_RETURN(config.norm_epsilon, keys.Number("attention.layer_norm_rms_epsilon"));
  ASSIGN_OR_RETURN(config.rope_base, keys.Number("rope.freq_base", 10000));
  RETURN_IF_ERROR(ReadScaling(keys, *gguf.weights, config));
  RETURN_IF_ERROR(ReadSwitches(keys, *family, config));
  config.tied_embeddings = !gguf.weights->Find(TensorName(NameScheme::kGguf, TensorKind::kOutput)).ok();
  return config;
}

// About the value of `key`, or of the key that it follows from when the file does not have it.
Status ValueError(const ArchitectureKeys& keys, const WeightSource& weights, std::string_view key,
                  std::string_view message) {
  if (keys.Has(key)) return keys.Error(key, message);
  for (const WeightSource::Entry& entry : weights.entries()) {
    if (key == kRopeDivisorsName && entry.name == key)
      return Malformed(kReason, "tensor \"", key, "\": ", message, " (data at byte ", entry.offset, ")");
  }
  const std::string source =
      key == "vocab_size" ? "tokenizer.ggml.tokens" : keys.Whole("attention.head_count");
  return keys.metadata().Error(kReason, source, Concat(keys.Whole(key), " follows from it: ", message));
}

}  // namespace

StatusOr<ModelConfig> ParseGgufConfig(const GgufFile& gguf, const std::string& file) {
  auto config = Parse(gguf);
  if (!config.ok()) return Annotate(config.status(), file);
  const ArchitectureKeys keys(gguf.metadata, FindModelFamily(config->family)->gguf);
  RETURN_IF_ERROR(Annotate(ValidateModelConfig(*config,
                                               [&](std::string_view key, std::string_view message) {
                                                 return ValueError(keys, *gguf.weights, key, message);
                                               }),
                           file));
  return config;
}

std::vector<GgufKey> GgufConfigKeys(const ModelConfig& config) {
  const ModelFamily* family = FindModelFamily(config.family);
  CHECK(family != nullptr, "a model of family ", config.family);
  std::vector<GgufKey> keys = {{"general.architecture", GgufString(std::string(family->gguf))}};
  if (!config.name.empty()) keys.push_back({"general.name", GgufString(config.name)});
  const auto add = [&](std::string_view key, GgufField field) {
    keys.push_back({Concat(family->gguf, ".", key), std::move(field)});
  };
  add("vocab_size", GgufU32(config.vocab_size));
  add("context_length", GgufU32(config.context_length));
  add("embedding_length", GgufU32(config.hidden_size));
  add("block_count", GgufU32(config.layers));
  add("feed_forward_length", FfnSizesField(config));
  if (config.experts > 0) {
    add("expert_count", GgufU32(config.experts));
    add("expert_used_count", GgufU32(config.experts_per_token));
    if (family->has_expert_width) add("expert_feed_forward_length", GgufU32(config.ffn_size));
  }
  add("rope.dimension_count", GgufU32(config.head_dim));
  add("rope.freq_base", GgufF32(config.rope_base));
  if (config.rope_scaling.kind == RopeScaling::Kind::kLinear) {
    add("rope.scaling.type", GgufString("linear"));
    add("rope.scaling.factor", GgufF32(config.rope_scaling.factor));
  }
  add("attention.head_count", GgufU32(config.heads));
  add("attention.head_count_kv", GgufU32(config.kv_heads));
  add("attention.key_length", GgufU32(config.head_dim));
  add("attention.value_length", GgufU32(config.head_dim));
  add("attention.layer_norm_rms_epsilon", GgufF32(config.norm_epsilon));
  // Of Gemma also what is none: a reader takes it for what the family has.
  const bool is_gemma = config.has_post_norms;
  if (is_gemma || !config.windows.empty())
    add("attention.sliding_window", GgufU32(config.windows.empty() ? 0 : std::ranges::max(config.windows)));
  if (ModelConfig read = config; !config.windows.empty()) {
    SetImplied(*family, std::ranges::max(config.windows), 0, read);
    if (read.windows != config.windows) add("attention.sliding_window_pattern", GgufU32(PatternOf(config)));
  }
  if (is_gemma || config.attention_softcap > 0)
    add("attn_logit_softcapping", GgufF32(config.attention_softcap));
  if (is_gemma || config.logit_softcap > 0) add("final_logit_softcapping", GgufF32(config.logit_softcap));
  if (config.window_rope_base > 0) add("rope.freq_base_swa", GgufF32(config.window_rope_base));
  return keys;
}

StatusOr<ModelConfig> AsGgufConfig(const ModelConfig& config) {
  ModelConfig out = config;
  out.names = NameScheme::kGguf;
  const ModelFamily& family = *FindModelFamily(config.family);
  out.rope_pairing = family.gguf_pairing;
  if (config.rope_scaling.kind == RopeScaling::Kind::kLlama3) {
    out.rope_scaling = {};
    out.rope_scaling.kind = RopeScaling::Kind::kDivisors;
    out.rope_scaling.divisors = RopeDivisors(config);
  }
  if (out.rope_scaling.kind == RopeScaling::Kind::kDivisors && family.gguf != "llama")
    return InvalidArgument("a .gguf file of family ", config.family,
                           " cannot say how RoPE is scaled; a folder can");
  if (config.experts > 0 && !config.normalizes_experts)
    return InvalidArgument(
        "a .gguf file of family ", config.family,
        " cannot say that the weights of a token's experts do not add up to 1; a folder can");
  if (!config.windows.empty()) SetImplied(family, std::ranges::max(config.windows), PatternOf(config), out);
  if (config.windows.empty()) SetImplied(family, 0, 0, out);
  if (out.windows != config.windows || out.AttentionScale() != config.AttentionScale() ||
      out.gate != config.gate)
    return InvalidArgument("a .gguf file of family ", config.family,
                           " cannot say which layers have windows, how scores are scaled or what gates, but ",
                           "what its family has; a folder can");
  return out;
}

}  // namespace terrace
