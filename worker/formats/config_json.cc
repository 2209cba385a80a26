#include <algorithm>
#include <cfloat>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

#include "base/json.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/model_config.h"
#include "worker/formats/model_family.h"

namespace terrace {
namespace {

constexpr std::string_view kReason = "bad_config";

// One JSON object of a model's folder; numbers are read strictly: 64.0, "64" and -1 are not counts.
class ConfigFile {
 public:
  static StatusOr<ConfigFile> Parse(std::string_view text, const std::string& file) {
    auto json = ParseJson(text);
    if (!json.ok()) return Annotate(AsDataLoss(json.status()), file);
    if (!json->is_object()) return Malformed(kReason, file, ": is not a JSON object");
    return ConfigFile(*std::move(json), file);
  }

  // A key with the value null is an absent one.
  bool Has(std::string_view key) const { return json_.contains(key) && !at(key).is_null(); }
  bool HasNull(std::string_view key) const { return json_.contains(key) && at(key).is_null(); }
  const Json& at(std::string_view key) const { return *json_.find(key); }

  template <typename... Args>
  Status Error(std::string_view key, const Args&... message) const {
    return Malformed(kReason, file_, ": key \"", key, "\": ", message...);
  }

  StatusOr<uint32_t> Count(std::string_view key, std::optional<uint32_t> fallback = {}) const {
    if (!Has(key)) return fallback ? StatusOr<uint32_t>(*fallback) : Missing(key);
    if (!at(key).is_number_unsigned() || at(key).get<uint64_t>() > UINT32_MAX)
      return Error(key, Shown(key), " is not a whole number from 0 to ", UINT32_MAX);
    return at(key).get<uint32_t>();
  }

  StatusOr<std::vector<uint32_t>> Counts(std::string_view key) const {
    std::vector<uint32_t> counts;
    if (!at(key).is_array()) return Error(key, Shown(key), " is not a list");
    for (const Json& count : at(key)) {
      if (!count.is_number_unsigned() || count.get<uint64_t>() > UINT32_MAX)
        return Error(key, Shown(key), " is not a list of whole numbers from 0 to ", UINT32_MAX);
      counts.push_back(count.get<uint32_t>());
    }
    return counts;
  }

  StatusOr<float> Number(std::string_view key, float fallback) const {
    if (!Has(key)) return fallback;
    return ToFloat(key, at(key));
  }

  // `value`, which stands at or below `key`, as a finite float.
  StatusOr<float> ToFloat(std::string_view key, const Json& value) const {
    if (!value.is_number()) return Error(key, Shown(key), " is not a number");
    if (std::abs(value.get<double>()) > FLT_MAX) return Error(key, Shown(key), " is too large");
    return value.get<float>();
  }

  StatusOr<bool> Bool(std::string_view key, bool fallback) const {
    if (!Has(key)) return fallback;
    if (!at(key).is_boolean()) return Error(key, Shown(key), " is neither true nor false");
    return at(key).get<bool>();
  }

  // The start of the value, in ASCII, for messages.
  std::string Shown(std::string_view key) const { return ShownValue(at(key)); }
  static std::string ShownValue(const Json& value) {
    return value.dump(-1, ' ', /*ensure_ascii=*/true).substr(0, 100);
  }

 private:
  ConfigFile(Json json, std::string file) : json_(std::move(json)), file_(std::move(file)) {}
  StatusOr<uint32_t> Missing(std::string_view key) const { return Error(key, "is missing"); }

  Json json_;
  std::string file_;
};

StatusOr<const ModelFamily*> Family(const ConfigFile& config, const std::string& file) {
  const auto fail = [&](std::string_view key, const auto&... message) {
    return Malformed("unsupported_architecture", file, ": key \"", key, "\": ", message...);
  };
  constexpr std::string_view kType = "model_type", kArchitectures = "architectures";
  const ModelFamily* family = nullptr;
  if (config.Has(kType) && config.at(kType).is_string())
    family = FindModelFamily(config.at(kType).get_ref<const std::string&>());
  if (family == nullptr)
    return fail(kType, config.Has(kType) ? config.Shown(kType) : "a model without one",
                " is not supported; supported are ", FamilyNames());
  if (config.Has(kArchitectures) &&
      config.at(kArchitectures) != Json::array({std::string(family->hugging_face)}))
    return fail(kArchitectures, config.Shown(kArchitectures), " is not supported; supported is [\"",
                family->hugging_face, "\"]");
  return family;
}

// Settings that would change the results and are not implemented. Silence about them would be wrong answers.
Status CheckUnsupported(const ConfigFile& config) {
  for (const std::string_view key : {"attention_bias", "mlp_bias", "use_bidirectional_attention"}) {
    ASSIGN_OR_RETURN(const bool is_set, config.Bool(key, false));
    if (is_set) return config.Error(key, "true is not supported");
  }
  ASSIGN_OR_RETURN(const float rotated, config.Number("partial_rotary_factor", 1));
  if (rotated != 1)
    return config.Error("partial_rotary_factor", rotated, " is not supported; supported is 1");
  return Status();
}

// What a layer gates with: hidden_act or, of Gemma, hidden_activation, which its own code prefers.
StatusOr<GateFunction> Gate(const ConfigFile& config, std::string_view key, std::string_view fallback) {
  const Json name = config.Has(key) ? config.at(key) : Json(fallback);
  if (name == "silu") return GateFunction::kSilu;
  if (name == "gelu_pytorch_tanh") return GateFunction::kGelu;
  return config.Error(key, config.Shown(key),
                      " is not supported; supported are \"silu\" and \"gelu_pytorch_tanh\"");
}

// A kind that only Terrace knows: what GGUF's rope_freqs.weight has, and no other kind can say.
constexpr std::string_view kDivisorsKind = "terrace_divisors";

StatusOr<RopeScaling> Divisors(const ConfigFile& config, std::string_view key, const Json& rope) {
  RopeScaling scaling;
  scaling.kind = RopeScaling::Kind::kDivisors;
  const auto found = rope.find("divisors");
  if (found == rope.end() || !found->is_array() || found->size() > kMaxHeadDim)
    return config.Error(key, "divisors is not a list of up to ", kMaxHeadDim, " numbers");
  for (const Json& each : *found) {
    ASSIGN_OR_RETURN(const float divisor, config.ToFloat(key, each));
    scaling.divisors.push_back(divisor);
  }
  return scaling;
}

// A kind of scaling and its numbers, from an object at or below `key`.
StatusOr<RopeScaling> Scaling(const ConfigFile& config, std::string_view key, const Json& rope) {
  constexpr std::string_view kSupported =
      R"( is not supported; supported are null, "default", "linear" and "llama3")";
  if (!rope.is_object()) return config.Error(key, config.Shown(key), kSupported);
  const Json kind = rope.contains("rope_type") ? rope["rope_type"] : rope.value("type", Json());
  const auto number = [&](std::string_view name) -> StatusOr<float> {
    const auto found = rope.find(name);
    if (found == rope.end()) return config.Error(key, name, " is missing");
    return config.ToFloat(key, *found);
  };
  RopeScaling scaling;
  if (kind == "default") return scaling;
  if (kind == kDivisorsKind) return Divisors(config, key, rope);
  if (kind != "linear" && kind != "llama3") {
    if (!kind.is_string()) return config.Error(key, config.Shown(key), kSupported);
    return config.Error(key, "kind ", ConfigFile::ShownValue(kind), kSupported);
  }
  ASSIGN_OR_RETURN(scaling.factor, number("factor"));
  scaling.kind = RopeScaling::Kind::kLinear;
  if (kind == "linear") return scaling;
  scaling.kind = RopeScaling::Kind::kLlama3;
  ASSIGN_OR_RETURN(scaling.low_frequency, number("low_freq_factor"));
  ASSIGN_OR_RETURN(scaling.high_frequency, number("high_freq_factor"));
  ASSIGN_OR_RETURN(const float context, number("original_max_position_embeddings"));
  if (!(context >= 1 && context <= kMaxContext && context == std::floor(context)))
    return config.Error(key, "original_max_position_embeddings ", context, " is not in 1 to ", kMaxContext);
  scaling.original_context = static_cast<uint32_t>(context);
  return scaling;
}

constexpr std::string_view kWindowed = "sliding_attention", kFull = "full_attention";

struct Rope {
  float base;
  RopeScaling scaling;
};

// Newer files have the base in rope_parameters, with the kind of scaling that older ones have in
// rope_scaling; where kinds of layers differ, rope_parameters has such an object for each.
StatusOr<Rope> ReadRope(const ConfigFile& config, std::string_view layers, float base, bool has_kinds) {
  Rope rope = {.base = base, .scaling = {}};
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    if (!config.Has(key)) continue;
    const Json* from = &config.at(key);
    // Of each kind of layers one where their bases differ, and else not.
    if (from->is_object() && from->contains(kFull) != has_kinds && key == "rope_parameters")
      return config.Error(key, has_kinds ? "has none of the kinds " : "has kinds: ", kFull, " and ",
                          kWindowed);
    if (from->is_object() && from->contains(layers)) from = &*from->find(layers);
    ASSIGN_OR_RETURN(rope.scaling, Scaling(config, key, *from));
    if (from->value("partial_rotary_factor", Json(1)) != 1)
      return config.Error(key, "partial_rotary_factor is not supported");
    if (!from->contains("rope_theta")) continue;
    ASSIGN_OR_RETURN(rope.base, config.ToFloat(key, (*from)["rope_theta"]));
  }
  return rope;
}

// layer_types where it is there, else is_windowed(layer).
template <typename IsWindowed>
Status SetWindows(const ConfigFile& json, uint32_t window, ModelConfig& config,
                  const IsWindowed& is_windowed) {
  constexpr std::string_view kKey = "layer_types";
  const bool is_listed = json.Has(kKey);
  if (is_listed && (!json.at(kKey).is_array() || json.at(kKey).size() != config.layers))
    return json.Error(kKey, "is not a list of ", config.layers, " kinds of layers");
  std::vector<uint32_t> windows;
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    bool has_window = !is_listed && is_windowed(layer);
    if (is_listed) {
      const Json& kind = json.at(kKey)[layer];
      if (kind != kWindowed && kind != kFull)
        return json.Error(kKey, ConfigFile::ShownValue(kind), " is not supported; supported are \"", kFull,
                          "\" and \"", kWindowed, "\"");
      has_window = kind == kWindowed;
    }
    if (has_window && window == 0)
      return json.Error("sliding_window", "says no size, and layer ", layer, " has a window");
    windows.push_back(has_window ? window : 0);
  }
  if (std::ranges::all_of(windows, [](uint32_t each) { return each == 0; })) return Status();
  config.windows = std::move(windows);
  return Status();
}

// Of one expert, where intermediate_size is that of layers without any.
constexpr std::string_view kExpertWidth = "moe_intermediate_size";
constexpr std::string_view kKvHeads = "num_key_value_heads", kWindow = "sliding_window";

// Experts, of families that have them, in each layer.
Status ReadExperts(const ConfigFile& json, const ModelFamily& family, ModelConfig& config) {
  // Newer files of Qwen may have Mixtral's key.
  const std::string_view other = "num_local_experts";
  const std::string_view count = json.Has(family.experts_key) ? family.experts_key : other;
  ASSIGN_OR_RETURN(config.experts, json.Count(count, family.defaults.experts));
  if (config.experts == 0) return json.Error(count, "0 is not in 1 to ", kMaxExperts);
  ASSIGN_OR_RETURN(config.experts_per_token,
                   json.Count("num_experts_per_tok", family.defaults.experts_per_token));
  config.normalizes_experts = true;
  if (family.name == "mixtral") return Status();
  ASSIGN_OR_RETURN(config.normalizes_experts, json.Bool("norm_topk_prob", false));
  ASSIGN_OR_RETURN(const uint32_t step, json.Count("decoder_sparse_step", 1));
  if (step != 1) return json.Error("decoder_sparse_step", step, " is not supported; supported is 1");
  constexpr std::string_view kDense = "mlp_only_layers";
  if (json.Has(kDense) && json.at(kDense) != Json::array())
    return json.Error(kDense, json.Shown(kDense), " is not supported; supported is []");
  return Status();
}

// Those of Gemma.
Status ReadGemma(const ConfigFile& json, const ModelFamily& family, ModelConfig& config) {
  const ModelFamily::Defaults& defaults = family.defaults;
  ASSIGN_OR_RETURN(config.gate, Gate(json, "hidden_activation", "gelu_pytorch_tanh"));
  constexpr std::string_view kScalar = "query_pre_attn_scalar";
  ASSIGN_OR_RETURN(const float scalar, json.Number(kScalar, 256));
  if (!(scalar > 0)) return json.Error(kScalar, json.Shown(kScalar), " is not above 0");
  config.attention_scale = 1 / std::sqrt(scalar);
  const auto cap = [&](std::string_view key, float fallback) {
    return json.Number(key, json.HasNull(key) ? 0 : fallback);
  };
  ASSIGN_OR_RETURN(config.attention_softcap, cap("attn_logit_softcapping", defaults.attention_softcap));
  ASSIGN_OR_RETURN(config.logit_softcap, cap("final_logit_softcapping", defaults.logit_softcap));
  ASSIGN_OR_RETURN(const uint32_t window, json.Count(kWindow, defaults.window));
  ASSIGN_OR_RETURN(const uint32_t pattern, json.Count("sliding_window_pattern", family.window_pattern));
  if (pattern == 0) return json.Error("sliding_window_pattern", "0 is not in 1 to ", UINT32_MAX);
  RETURN_IF_ERROR(
      SetWindows(json, window, config, [&](uint32_t layer) { return (layer + 1) % pattern != 0; }));
  if (defaults.window_rope_base == 0) return Status();
  ASSIGN_OR_RETURN(const float local, json.Number("rope_local_base_freq", defaults.window_rope_base));
  config.window_rope_base = local;
  if (!json.Has("rope_parameters")) return Status();
  ASSIGN_OR_RETURN(const Rope rope, ReadRope(json, kWindowed, local, /*has_kinds=*/true));
  if (rope.scaling != RopeScaling())
    return json.Error("rope_parameters", kWindowed, " with scaling is not supported");
  config.window_rope_base = rope.base;
  return Status();
}

// What the family of `config`, which has the sizes, does otherwise than Llama.
Status ReadSwitches(const ConfigFile& json, const ModelFamily& family, ModelConfig& config) {
  SetSwitches(family, config);
  if (family.is_gemma) return ReadGemma(json, family, config);
  ASSIGN_OR_RETURN(config.gate, Gate(json, "hidden_act", "silu"));
  if (family.name == "llama") return Status();
  const bool is_qwen = family.name.starts_with("qwen");
  bool has_windows = true;
  if (is_qwen) {
    ASSIGN_OR_RETURN(has_windows, json.Bool("use_sliding_window", false));
    if (family.has_experts)
      return has_windows ? json.Error("use_sliding_window", "true is not supported") : Status();
  }
  ASSIGN_OR_RETURN(const uint32_t window,
                   json.Count(kWindow, json.HasNull(kWindow) ? 0 : family.defaults.window));
  if (!is_qwen) return SetWindows(json, window, config, [&](uint32_t) { return window > 0; });
  ASSIGN_OR_RETURN(const uint32_t first, json.Count("max_window_layers", 28));
  return SetWindows(json, has_windows ? window : 0, config,
                    [&](uint32_t layer) { return has_windows && layer >= first; });
}

// The double with the fewest digits that is `value` as a float: 1e-05, not 9.999999747378752e-06.
double ShortestDecimal(float value) {
  char digits[32];
  const char* const end = std::to_chars(std::begin(digits), std::end(digits), value).ptr;
  double decimal = 0;
  std::from_chars(digits, end, decimal);
  return decimal;
}

// The inverse of Scaling.
Json ScalingJson(const RopeScaling& scaling) {
  const Json factor = ShortestDecimal(scaling.factor);
  switch (scaling.kind) {
    case RopeScaling::Kind::kNone:
      break;
    case RopeScaling::Kind::kLinear:
      return {{"rope_type", "linear"}, {"factor", factor}};
    case RopeScaling::Kind::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", factor},
              {"low_freq_factor", ShortestDecimal(scaling.low_frequency)},
              {"high_freq_factor", ShortestDecimal(scaling.high_frequency)},
              {"original_max_position_embeddings", scaling.original_context}};
    case RopeScaling::Kind::kDivisors: {
      Json divisors = Json::array();
      for (const float divisor : scaling.divisors) divisors.push_back(ShortestDecimal(divisor));
      return {{"rope_type", kDivisorsKind}, {"divisors", divisors}};
    }
  }
  return nullptr;
}

float ScaleOf(float scalar) { return 1 / std::sqrt(scalar); }

// A query_pre_attn_scalar of which ReadGemma makes `scale`, whole if there is one.
float ScalarOf(float scale) {
  const auto near = static_cast<float>(1 / (double{scale} * scale));
  if (ScaleOf(std::round(near)) == scale) return std::round(near);
  float below = near, above = near;
  for (int i = 0; i < 8 && ScaleOf(below) != scale; ++i) below = std::nextafter(below, 0.0f);
  for (int i = 0; i < 8 && ScaleOf(above) != scale; ++i) above = std::nextafter(above, FLT_MAX);
  return ScaleOf(below) == scale ? below : ScaleOf(above) == scale ? above : near;
}

// The inverse of ReadSwitches. Of keys that newer and older loaders call otherwise, both.
void WriteSwitches(const ModelFamily& family, const ModelConfig& config, Json& json) {
  const uint32_t window = config.windows.empty() ? 0 : std::ranges::max(config.windows);
  json[std::string(kWindow)] = window > 0 ? Json(window) : Json();
  Json kinds = Json::array();
  for (uint32_t layer = 0; layer < config.layers; ++layer)
    kinds.push_back(config.Window(layer) > 0 ? kWindowed : kFull);
  json["layer_types"] = kinds;
  if (config.experts > 0) {
    json["num_experts_per_tok"] = config.experts_per_token;
    json[std::string(family.experts_key)] = config.experts;
  }
  if (family.has_expert_width) {
    json["norm_topk_prob"] = config.normalizes_experts;
    json[std::string(kExpertWidth)] = config.ffn_size;
    json["decoder_sparse_step"] = 1;
    json["mlp_only_layers"] = Json::array();
  }
  if (family.name.starts_with("qwen")) {
    json["use_sliding_window"] = window > 0;
    // What loaders without layer_types go by.
    const auto first = std::ranges::find_if(config.windows, [](uint32_t each) { return each > 0; });
    json["max_window_layers"] = window > 0 ? first - config.windows.begin() : config.layers;
  }
  if (!family.is_gemma) return;
  json["query_pre_attn_scalar"] = ShortestDecimal(ScalarOf(config.AttentionScale()));
  const auto cap = [](float value) { return value > 0 ? Json(ShortestDecimal(value)) : Json(); };
  json["attn_logit_softcapping"] = cap(config.attention_softcap);
  json["final_logit_softcapping"] = cap(config.logit_softcap);
  if (config.window_rope_base > 0) json["rope_local_base_freq"] = ShortestDecimal(config.window_rope_base);
}

}  // namespace

StatusOr<ModelConfig> ParseConfigJson(std::string_view text, const std::string& file) {
  ASSIGN_OR_RETURN(const ConfigFile json, ConfigFile::Parse(text, file));
  ASSIGN_OR_RETURN(const ModelFamily* family, Family(json, file));
  RETURN_IF_ERROR(CheckUnsupported(json));

  ModelConfig config;
  config.family = family->name;
  ASSIGN_OR_RETURN(config.vocab_size, json.Count("vocab_size"));
  ASSIGN_OR_RETURN(config.context_length, json.Count("max_position_embeddings"));
  ASSIGN_OR_RETURN(config.hidden_size, json.Count("hidden_size"));
  ASSIGN_OR_RETURN(config.layers, json.Count("num_hidden_layers"));
  ASSIGN_OR_RETURN(config.heads, json.Count("num_attention_heads"));
  const ModelFamily::Defaults& defaults = family->defaults;
  const bool has_as_many = defaults.kv_heads == 0 || json.HasNull(kKvHeads);
  ASSIGN_OR_RETURN(config.kv_heads, json.Count(kKvHeads, has_as_many ? config.heads : defaults.kv_heads));
  if (family->has_experts) RETURN_IF_ERROR(ReadExperts(json, *family, config));
  ASSIGN_OR_RETURN(config.ffn_size, family->has_expert_width ? json.Count(kExpertWidth, defaults.expert_width)
                                                             : json.Count("intermediate_size"));
  if (json.Has(kFfnSizesKey)) {
    ASSIGN_OR_RETURN(config.ffn_sizes, json.Counts(kFfnSizesKey));
    if (config.ffn_sizes.empty()) return json.Error(kFfnSizesKey, "is empty");
  }
  if (defaults.head_dim > 0) {
    ASSIGN_OR_RETURN(config.head_dim, json.Count("head_dim", defaults.head_dim));
  } else {
    if (!json.Has("head_dim") && config.heads != 0 && config.hidden_size % config.heads != 0)
      return json.Error("num_attention_heads", config.heads, " does not divide hidden_size ",
                        config.hidden_size, ", and there is no head_dim");
    ASSIGN_OR_RETURN(config.head_dim,
                     json.Count("head_dim", config.heads == 0 ? 0 : config.hidden_size / config.heads));
  }
  ASSIGN_OR_RETURN(config.norm_epsilon, json.Number("rms_norm_eps", defaults.norm_epsilon));
  ASSIGN_OR_RETURN(const float base, json.Number("rope_theta", defaults.rope_base));
  ASSIGN_OR_RETURN(const Rope rope, ReadRope(json, kFull, base, defaults.window_rope_base > 0));
  config.rope_base = rope.base;
  config.rope_scaling = rope.scaling;
  ASSIGN_OR_RETURN(config.tied_embeddings, json.Bool("tie_word_embeddings", defaults.tied_embeddings));
  if (constexpr std::string_view kKey = "quantization_config"; json.Has(kKey)) {
    const auto quantization = ParseQuantizationConfig(json.at(kKey));
    if (!quantization.ok()) return json.Error(kKey, Message(quantization.status()));
    config.quantization = *quantization;
  }
  for (const std::string_view key : {"auto_map", "trust_remote_code"}) {
    if (json.Has(key))
      config.warnings.push_back(Concat(file, ": key \"", key, "\" is ignored: no code of a model is run"));
  }
  const auto error = [&](std::string_view key, std::string_view message) { return json.Error(key, message); };
  RETURN_IF_ERROR(ValidateModelConfig(config, error));  // sizes: what follows has an entry for each layer
  RETURN_IF_ERROR(ReadSwitches(json, *family, config));
  RETURN_IF_ERROR(ValidateModelConfig(config, error));
  if (!config.ffn_sizes.empty()) SetFfnSizes(std::move(config.ffn_sizes), config);
  return config;
}

std::string ConfigJsonText(const ModelConfig& config) {
  const ModelFamily* family = FindModelFamily(config.family);
  CHECK(family != nullptr, "a model of family ", config.family);
  Json json = {{"architectures", {std::string(family->hugging_face)}},
               {"model_type", config.family},
               {family->is_gemma ? "hidden_activation" : "hidden_act",
                config.gate == GateFunction::kSilu ? "silu" : "gelu_pytorch_tanh"},
               {"attention_bias", false},
               {"mlp_bias", false},
               {"vocab_size", config.vocab_size},
               {"max_position_embeddings", config.context_length},
               {"hidden_size", config.hidden_size},
               {"num_hidden_layers", config.layers},
               {"num_attention_heads", config.heads},
               {"num_key_value_heads", config.kv_heads},
               {"head_dim", config.head_dim},
               {"intermediate_size", config.ffn_size},
               {"rms_norm_eps", ShortestDecimal(config.norm_epsilon)},
               {"rope_theta", ShortestDecimal(config.rope_base)},
               {"rope_scaling", ScalingJson(config.rope_scaling)},
               {"tie_word_embeddings", config.tied_embeddings}};
  if (!config.ffn_sizes.empty()) json[std::string(kFfnSizesKey)] = config.ffn_sizes;
  if (config.quantization) json["quantization_config"] = QuantizationConfigJson(*config.quantization);
  if (config.family != "llama") WriteSwitches(*family, config, json);
  return json.dump(2) + "\n";
}

namespace {

// What other loaders know for the divisors of a GGUF file, or kNone: the factors of every Llama from 3.1 on
// but for `factor`, which is the slowest pair's. Converters compute the divisors in f32, a few roundings
// each.
RopeScaling Llama3ScalingOf(const ModelConfig& config) {
  const std::vector<float>& divisors = config.rope_scaling.divisors;
  ModelConfig named = config;
  named.rope_scaling = {};
  named.rope_scaling.kind = RopeScaling::Kind::kLlama3;
  named.rope_scaling.factor = std::ranges::max(divisors);
  const std::vector<float> theirs = RopeDivisors(named);
  for (size_t i = 0; i < divisors.size(); ++i) {
    if (!(std::abs(theirs[i] - divisors[i]) <= 1e-5f * divisors[i])) return {};
  }
  return named.rope_scaling;
}

}  // namespace

ModelConfig AsFolderConfig(const ModelConfig& config) {
  ModelConfig out = config;
  out.names = NameScheme::kHuggingFace;
  out.rope_pairing = RopePairing::kHalves;
  const ModelFamily* family = FindModelFamily(config.family);
  CHECK(family != nullptr, "a model of family ", config.family);
  out.norms_less_one = family->is_gemma;
  if (config.family == "llama" && !config.windows.empty()) out.family = "mistral";
  if (config.rope_scaling.kind == RopeScaling::Kind::kDivisors) {
    const RopeScaling named = Llama3ScalingOf(config);
    if (named.kind != RopeScaling::Kind::kNone) out.rope_scaling = named;
  }
  return out;
}

Status CheckGenerationConfig(std::string_view text, const std::string& file) {
  ASSIGN_OR_RETURN(const ConfigFile json, ConfigFile::Parse(text, file));
  const struct {
    std::string_view key;
    float low, high;
  } ranges[] = {
      {"temperature", 0, 100}, {"top_p", 0, 1}, {"min_p", 0, 1}, {"repetition_penalty", 1e-3f, 100}};
  for (const auto& range : ranges) {
    ASSIGN_OR_RETURN(const float value, json.Number(range.key, range.high));
    if (!(value >= range.low && value <= range.high))
      return json.Error(range.key, json.Shown(range.key), " is not in ", range.low, " to ", range.high);
  }
  for (const std::string_view key : {"top_k", "max_length", "max_new_tokens"})
    RETURN_IF_ERROR(json.Count(key, 0).status());
  return Status();
}

}  // namespace terrace
