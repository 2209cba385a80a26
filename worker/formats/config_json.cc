#include <cfloat>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

#include "worker/formats/byte_reader.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/model_config.h"

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

Status CheckArchitecture(const ConfigFile& config, const std::string& file) {
  const auto fail = [&](std::string_view key, std::string_view found, std::string_view supported) {
    return Malformed("unsupported_architecture", file, ": key \"", key, "\": ", found,
                     " is not supported; supported is ", supported);
  };
  if (!config.Has("model_type")) return fail("model_type", "a model without one", "\"llama\"");
  if (config.at("model_type") != "llama") return fail("model_type", config.Shown("model_type"), "\"llama\"");
  if (config.Has("architectures") && config.at("architectures") != Json::array({"LlamaForCausalLM"}))
    return fail("architectures", config.Shown("architectures"), "[\"LlamaForCausalLM\"]");
  return Status();
}

// Settings that would change the results and are not implemented. Silence about them would be wrong answers.
Status CheckUnsupported(const ConfigFile& config) {
  if (config.Has("hidden_act") && config.at("hidden_act") != "silu")
    return config.Error("hidden_act", config.Shown("hidden_act"), " is not supported; supported is \"silu\"");
  for (const std::string_view key : {"attention_bias", "mlp_bias"}) {
    ASSIGN_OR_RETURN(const bool is_set, config.Bool(key, false));
    if (is_set) return config.Error(key, "true is not supported");
  }
  ASSIGN_OR_RETURN(const float rotated, config.Number("partial_rotary_factor", 1));
  if (rotated != 1)
    return config.Error("partial_rotary_factor", rotated, " is not supported; supported is 1");
  return Status();
}

// Plain RoPE's base. Newer files have it in rope_parameters, with the kind of scaling that older ones have in
// rope_scaling; only the kind "default", which is none, is supported.
StatusOr<float> RopeBase(const ConfigFile& config) {
  ASSIGN_OR_RETURN(float base, config.Number("rope_theta", 10000));
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    if (!config.Has(key)) continue;
    const Json& rope = config.at(key);
    const Json kind = !rope.is_object()            ? Json()
                      : rope.contains("rope_type") ? rope["rope_type"]
                                                   : rope.value("type", Json());
    if (kind != "default") {
      constexpr std::string_view kSupported = " is not supported; supported are null and \"default\"";
      if (!kind.is_string()) return config.Error(key, config.Shown(key), kSupported);
      return config.Error(key, "kind ", ConfigFile::ShownValue(kind), kSupported);
    }
    if (!rope.contains("rope_theta")) continue;
    ASSIGN_OR_RETURN(base, config.ToFloat(key, rope["rope_theta"]));
  }
  return base;
}

// The double with the fewest digits that is `value` as a float: 1e-05, not 9.999999747378752e-06.
double ShortestDecimal(float value) {
  char digits[32];
  const char* const end = std::to_chars(std::begin(digits), std::end(digits), value).ptr;
  double decimal = 0;
  std::from_chars(digits, end, decimal);
  return decimal;
}

}  // namespace

StatusOr<ModelConfig> ParseConfigJson(std::string_view text, const std::string& file) {
  ASSIGN_OR_RETURN(const ConfigFile json, ConfigFile::Parse(text, file));
  RETURN_IF_ERROR(CheckArchitecture(json, file));
  RETURN_IF_ERROR(CheckUnsupported(json));

  ModelConfig config = {.family = "llama", .name = "", .warnings = {}};
  ASSIGN_OR_RETURN(config.vocab_size, json.Count("vocab_size"));
  ASSIGN_OR_RETURN(config.context_length, json.Count("max_position_embeddings"));
  ASSIGN_OR_RETURN(config.hidden_size, json.Count("hidden_size"));
  ASSIGN_OR_RETURN(config.layers, json.Count("num_hidden_layers"));
  ASSIGN_OR_RETURN(config.heads, json.Count("num_attention_heads"));
  ASSIGN_OR_RETURN(config.kv_heads, json.Count("num_key_value_heads", config.heads));
  ASSIGN_OR_RETURN(config.ffn_size, json.Count("intermediate_size"));
  if (json.Has(kFfnSizesKey)) {
    ASSIGN_OR_RETURN(config.ffn_sizes, json.Counts(kFfnSizesKey));
    if (config.ffn_sizes.empty()) return json.Error(kFfnSizesKey, "is empty");
  }
  if (!json.Has("head_dim") && config.heads != 0 && config.hidden_size % config.heads != 0)
    return json.Error("num_attention_heads", config.heads, " does not divide hidden_size ",
                      config.hidden_size, ", and there is no head_dim");
  ASSIGN_OR_RETURN(config.head_dim,
                   json.Count("head_dim", config.heads == 0 ? 0 : config.hidden_size / config.heads));
  ASSIGN_OR_RETURN(config.norm_epsilon, json.Number("rms_norm_eps", 1e-6f));
  ASSIGN_OR_RETURN(config.rope_base, RopeBase(json));
  ASSIGN_OR_RETURN(config.tied_embeddings, json.Bool("tie_word_embeddings", false));
  if (constexpr std::string_view kKey = "quantization_config"; json.Has(kKey)) {
    const auto quantization = ParseQuantizationConfig(json.at(kKey));
    if (!quantization.ok()) return json.Error(kKey, Message(quantization.status()));
    config.quantization = *quantization;
  }
  for (const std::string_view key : {"auto_map", "trust_remote_code"}) {
    if (json.Has(key))
      config.warnings.push_back(Concat(file, ": key \"", key, "\" is ignored: no code of a model is run"));
  }
  RETURN_IF_ERROR(ValidateModelConfig(
      config, [&](std::string_view key, std::string_view message) { return json.Error(key, message); }));
  if (!config.ffn_sizes.empty()) SetFfnSizes(std::move(config.ffn_sizes), config);
  return config;
}

std::string ConfigJsonText(const ModelConfig& config) {
  Json json = {{"architectures", {"LlamaForCausalLM"}},
               {"model_type", config.family},
               {"hidden_act", "silu"},
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
               {"rope_scaling", nullptr},
               {"tie_word_embeddings", config.tied_embeddings}};
  if (!config.ffn_sizes.empty()) json[std::string(kFfnSizesKey)] = config.ffn_sizes;
  if (config.quantization) json["quantization_config"] = QuantizationConfigJson(*config.quantization);
  return json.dump(2) + "\n";
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
