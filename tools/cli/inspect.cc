#include "tools/cli/inspect.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tools/cli/format.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

constexpr uint32_t kBatch = 16;  // sequences of the second memory figure

// The pre-tokenizer and the number of merges are in the tokenizer's canonical form only.
Json TokenizerToJson(const Tokenizer& tokenizer) {
  Json json = {{"vocab_size", tokenizer.vocab_size()}, {"special_tokens", Json::object()}};
  const std::string serialized = tokenizer.Serialize();
  const StatusOr<Json> parts =
      ParseJson(serialized, {.bytes = serialized.size(), .depth = 64, .nodes = serialized.size()});
  if (parts.ok() && parts->contains("merges")) json["merges"] = (*parts)["merges"].size() / 2;
  if (parts.ok() && parts->contains("pre")) json["pre_tokenizer"] = (*parts)["pre"];
  for (size_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const auto token = static_cast<TokenId>(id);
    if (!tokenizer.IsControl(token)) continue;
    json["special_tokens"][std::string(tokenizer.TokenBytes(token, /*with_control=*/true))] = token;
  }
  json["bos"] = tokenizer.special().bos;
  json["end"] = tokenizer.special().end;
  json["add_bos"] = tokenizer.special().add_bos;
  return json;
}

// Of keys and values in f32, as CPUs hold them unless kv.dtype says otherwise.
uint64_t KvBytesPerToken(const ModelConfig& config) {
  return uint64_t{2} * config.layers * config.kv_heads * config.head_dim * sizeof(float);
}

// "model.layers.3.mlp.experts.5.up_proj.weight" -> "model.layers.*.mlp.experts.*.up_proj.weight"
std::string WithoutNumbers(const std::string& name) {
  std::string out;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool is_number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    out += Concat(begin == 0 ? "" : ".", is_number ? "*" : part);
    begin = end + 1;
  }
  return out;
}

std::string ShapeText(const Json& shape) {
  std::string out;
  for (const Json& dim : shape) out += Concat(out.empty() ? "" : " x ", dim.get<uint64_t>());
  return out;
}

std::string TensorTable(const Json& tensors, bool all) {
  // Grouped by name (layers and experts left out), dtype and shape, in order of first appearance.
  std::map<std::vector<std::string>, size_t> places;
  std::vector<std::pair<std::vector<std::string>, std::pair<uint64_t, uint64_t>>>
      groups;  // cells; count, bytes
  for (const Json& tensor : tensors) {
    const std::string name = tensor["name"].get<std::string>();
    const std::vector<std::string> cells = {all ? name : WithoutNumbers(name),
                                            tensor["dtype"].get<std::string>(), ShapeText(tensor["shape"])};
    const auto [place, is_new] = places.emplace(cells, groups.size());
    if (is_new) groups.push_back({cells, {0, 0}});
    auto& [count, bytes] = groups[place->second].second;
    ++count;
    bytes += tensor["bytes"].get<uint64_t>();
  }
  std::vector<std::vector<std::string>> rows = {{"tensor", "dtype", "shape", "count", "bytes"}};
  for (auto& [cells, sums] : groups) {
    rows.push_back({cells[0], cells[1], cells[2], std::to_string(sums.first), FormatCount(sums.second)});
  }
  return FormatTable(rows, 3);
}

// ", windows of 4,096 tokens in 13 of 26 layers"
std::string WindowsText(const Json& windows) {
  uint64_t most = 0, layers = 0;
  for (const Json& window : windows) {
    most = std::max(most, window.get<uint64_t>());
    if (window != 0) ++layers;
  }
  if (layers == 0) return "";
  return Concat(", windows of ", FormatCount(most), " tokens in ", layers, " of ", windows.size(), " layers");
}

std::string RopeScalingText(const RopeScaling& scaling) {
  switch (scaling.kind) {
    case RopeScaling::Kind::kNone:
      break;
    case RopeScaling::Kind::kLinear:
      return Concat("scaled by ", scaling.factor);
    case RopeScaling::Kind::kLlama3:
      return Concat("scaled by up to ", scaling.factor, " (llama3, from ", scaling.original_context,
                    " tokens)");
    case RopeScaling::Kind::kDivisors:
      return Concat("scaled by up to ", std::ranges::max(scaling.divisors), " (", kRopeDivisorsName, ")");
  }
  return "not scaled";
}

std::string ExpertsText(const Json& architecture) {
  const auto experts = architecture["experts"].get<uint64_t>();
  if (experts == 0) return "";
  return Concat(", ", FormatCount(experts), " experts of which a token takes ",
                FormatCount(architecture["experts_per_token"].get<uint64_t>()));
}

std::string FormatInspection(const Json& json, bool all_tensors, const CommandContext& context) {
  const Json &a = json["architecture"], &t = json["tokenizer"], &m = json["memory"];
  const auto count = [](const Json& value) { return FormatCount(value.get<uint64_t>()); };
  const auto bytes = [](const Json& value) { return FormatBytes(value.get<uint64_t>()); };
  std::string dtypes, special;
  for (const auto& [dtype, sums] : json["dtypes"].items()) {
    dtypes += Concat(dtypes.empty() ? "" : ", ", dtype, ": ",
                     FormatCount(sums["tensors"].get<uint64_t>(), "tensor"), ", ", bytes(sums["bytes"]));
  }
  for (const auto& [text, id] : t["special_tokens"].items()) {
    special += Concat(special.empty() ? "" : "  ", id.get<int64_t>(), " ", text);
  }
  const std::string memory_of_one = bytes(m["total_bytes_1_sequence"]),
                    of_batch = bytes(m["total_bytes_16_sequences"]);
  std::vector<std::vector<std::string>> rows = {
      {"architecture",
       Concat(a["family"].get<std::string>(), ", ", count(json["parameters"]), " parameters",
              a["experts"] == 0 ? ""
                                : Concat(", ", count(json["parameters_per_token"]), " of them for a token"))},
      {"layers",
       Concat(count(a["layers"]), " of width ", count(a["hidden_size"]), ", feed-forward ",
              a["ffn_sizes"].empty() ? count(a["ffn_size"]) : a["ffn_sizes"].dump(), ExpertsText(a))},
      {"attention", Concat(count(a["heads"]), " heads, ", count(a["kv_heads"]), " key/value heads of ",
                           count(a["head_dim"]), WindowsText(a["windows"]))},
      {"RoPE", Concat("base ", a["rope_base"].dump(), ", ", a["rope_scaling"].get<std::string>())},
      {"context", Concat(count(a["context_length"]), " tokens")},
      {"embeddings",
       Concat(count(a["vocab_size"]), " rows", a["tied_embeddings"].get<bool>() ? ", output tied" : "")},
      {"weights", Concat(json["format"].get<std::string>(), ", ", dtypes)},
      {"tokenizer",
       Concat(count(t["vocab_size"]), " tokens",
              t.contains("merges") ? Concat(", ", count(t["merges"]), " merges") : "",
              t.contains("pre_tokenizer") ? Concat(", pre-tokenizer ", t["pre_tokenizer"].get<std::string>())
                                          : "")},
      {"special", special},
      {"chat template", json["chat_template"].get<bool>() ? "yes" : "no: plain prompts only"},
      {"digest", json["digest"].get<std::string>()},
      {"memory", Concat("weights ", bytes(m["weight_bytes"]), " + KV cache ", bytes(m["kv_bytes_per_token"]),
                        " a token, ", bytes(m["kv_bytes_per_context"]), " a full context")},
      {"",
       Concat(memory_of_one, " for 1 sequence, ", of_batch, " for ", kBatch, " sequences of full context")},
  };
  return Concat(context.Bold(a["name"].get<std::string>()), "  ", json["path"].get<std::string>(), "\n",
                FormatTable(rows, rows.front().size()), "\n", TensorTable(json["tensors"], all_tensors));
}

}  // namespace

StatusOr<Json> InspectionToJson(const ModelFiles& files) {
  const ModelConfig& config = files.config;
  Json json = {{"path", files.weights->path()},
               {"format", files.format},
               {"digest", files.digest.Hex()},
               {"chat_template", files.text->chat_template != nullptr},
               {"architecture",
                {{"family", config.family},
                 {"name", config.name},
                 {"vocab_size", config.vocab_size},
                 {"context_length", config.context_length},
                 {"hidden_size", config.hidden_size},
                 {"layers", config.layers},
                 {"heads", config.heads},
                 {"kv_heads", config.kv_heads},
                 {"head_dim", config.head_dim},
                 {"ffn_size", config.ffn_size},
                 {"ffn_sizes", config.ffn_sizes},
                 {"experts", config.experts},
                 {"experts_per_token", config.experts_per_token},
                 {"norm_epsilon", config.norm_epsilon},
                 {"rope_base", config.rope_base},
                 {"rope_scaling", RopeScalingText(config.rope_scaling)},
                 {"windows", config.windows},
                 {"gate", config.gate == GateFunction::kSilu ? "silu" : "gelu"},
                 {"attention_softcap", config.attention_softcap},
                 {"logit_softcap", config.logit_softcap},
                 {"tied_embeddings", config.tied_embeddings}}},
               {"tensors", Json::array()},
               {"dtypes", Json::object()},
               {"tokenizer", TokenizerToJson(*files.text->tokenizer)}};
  uint64_t parameters = 0, weight_bytes = 0;
  for (const WeightSource::Entry& entry : files.weights->entries()) {
    const TensorView& tensor = entry.tensor;
    ASSIGN_OR_RETURN(const uint64_t elements, ElementCount(tensor.shape));
    parameters += elements;
    weight_bytes += tensor.bytes;
    const std::string dtype = FormatName(tensor.dtype, config);
    json["tensors"].push_back(
        {{"name", entry.name},
         {"dtype", dtype},
         {"shape",
          std::vector<uint64_t>(tensor.shape.dims.begin(), tensor.shape.dims.begin() + tensor.shape.rank)},
         {"bytes", tensor.bytes}});
    Json& sums = json["dtypes"][dtype];
    if (sums.is_null()) sums = {{"tensors", 0}, {"bytes", 0}};
    sums["tensors"] = sums["tensors"].get<uint64_t>() + 1;
    sums["bytes"] = sums["bytes"].get<uint64_t>() + tensor.bytes;
  }
  const uint64_t per_context = KvBytesPerToken(config) * config.context_length;
  uint64_t of_experts = 0;  // that a token does not take
  for (uint32_t layer = 0; layer < config.layers; ++layer)
    of_experts += uint64_t{3} * config.hidden_size * config.FfnSize(layer);
  of_experts *= config.FfnCount() - (config.experts > 0 ? config.experts_per_token : 1);
  json["parameters"] = parameters;
  json["parameters_per_token"] = parameters - of_experts;
  json["memory"] = {{"weight_bytes", weight_bytes},
                    {"kv_bytes_per_token", KvBytesPerToken(config)},
                    {"kv_bytes_per_context", per_context},
                    {"total_bytes_1_sequence", weight_bytes + per_context},
                    {"total_bytes_16_sequences", weight_bytes + kBatch * per_context}};
  return json;
}

Status RunInspect(const InspectOptions& options, const CommandContext& context) {
  if (!options.fit.devices.empty()) return RunInspectFit(options.model, options.fit, options.json, context);
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(options.model));
  ASSIGN_OR_RETURN(const Json json, InspectionToJson(files));
  context.out << (options.json ? ToJsonText(json) + "\n"
                               : FormatInspection(json, options.all_tensors, context));
  return Status();
}

}  // namespace terrace
