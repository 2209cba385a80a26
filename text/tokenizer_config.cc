#include "text/tokenizer_config.h"

#include "base/mapped_file.h"
#include "text/json_fields.h"

namespace terrace {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

// A token is written as its text or as {"content": text, ...}; null and absent mean none.
StatusOr<std::optional<std::string>> ReadToken(const JsonReader& root, std::string_view name) {
  if (!root.Has(name)) return std::optional<std::string>();
  const auto object = root.Object(name);
  return object.ok() ? object->Text("content") : root.Text(name);
}

// One template, or a list of named ones of which "default" is meant.
StatusOr<std::optional<std::string>> ReadTemplate(const JsonReader& root) {
  if (!root.Has("chat_template")) return std::optional<std::string>();
  const auto list = root.Array("chat_template");
  if (!list.ok()) return root.Text("chat_template");
  for (size_t i = 0; i < list->size(); ++i) {
    ASSIGN_OR_RETURN(const JsonReader entry, list->Object(i));
    ASSIGN_OR_RETURN(const std::string name, entry.Text("name"));
    if (name == "default") return entry.Text("template");
  }
  return std::optional<std::string>();
}

StatusOr<TokenizerConfig> ReadTokenizerFields(const JsonReader& root) {
  TokenizerConfig config;
  ASSIGN_OR_RETURN(config.bos_token, ReadToken(root, "bos_token"));
  ASSIGN_OR_RETURN(config.eos_token, ReadToken(root, "eos_token"));
  ASSIGN_OR_RETURN(config.pad_token, ReadToken(root, "pad_token"));
  ASSIGN_OR_RETURN(config.chat_template, ReadTemplate(root));
  if (root.Has("add_bos_token")) {
    ASSIGN_OR_RETURN(config.add_bos_token, root.Bool("add_bos_token"));
  }
  return config;
}

StatusOr<GenerationConfig> ReadGenerationFields(const JsonReader& root) {
  const auto id_of = [](const JsonReader& from, auto name) {
    return from.Integer(name, 0, INT32_MAX, "bad_special_id");
  };
  GenerationConfig config;
  if (root.Has("bos_token_id")) {
    ASSIGN_OR_RETURN(config.bos_token_id, id_of(root, "bos_token_id"));
  }
  if (root.Has("pad_token_id")) {
    ASSIGN_OR_RETURN(config.pad_token_id, id_of(root, "pad_token_id"));
  }
  if (!root.Has("eos_token_id")) return config;
  const auto list = root.Array("eos_token_id");
  if (!list.ok()) {
    ASSIGN_OR_RETURN(const int64_t id, id_of(root, "eos_token_id"));
    config.eos_token_ids.push_back(id);
    return config;
  }
  for (size_t i = 0; i < list->size(); ++i) {
    ASSIGN_OR_RETURN(const int64_t id, id_of(*list, i));
    config.eos_token_ids.push_back(id);
  }
  return config;
}

// `read` applied to the file, or a default value when there is no file.
template <typename Config>
StatusOr<Config> ReadOptionalFile(const std::string& path, StatusOr<Config> (*read)(const JsonReader&)) {
  const auto json = ReadJsonFile(path);
  if (json.status().code() == StatusCode::kNotFound) return Config();
  RETURN_IF_ERROR(json.status());
  if (!json->is_object()) return WithReason(DataLoss(path, ": not an object"), "type_mismatch");
  auto config = read(JsonReader(*json, ""));
  if (!config.ok()) return Annotate(config.status(), path);
  return config;
}

}  // namespace

StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& directory) {
  ASSIGN_OR_RETURN(TokenizerConfig config,
                   ReadOptionalFile(directory + "/tokenizer_config.json", &ReadTokenizerFields));
  auto source = ReadFile(directory + "/chat_template.jinja", kMaxTemplateBytes);
  if (source.ok()) {
    config.chat_template = *std::move(source);
  } else if (source.status().code() == StatusCode::kResourceExhausted) {
    return WithReason(DataLoss(Message(source.status())), "bad_template");
  } else if (source.status().code() != StatusCode::kNotFound) {
    return source.status();
  }
  return config;
}

StatusOr<GenerationConfig> ReadGenerationConfig(const std::string& directory) {
  return ReadOptionalFile(directory + "/generation_config.json", &ReadGenerationFields);
}

}  // namespace terrace
