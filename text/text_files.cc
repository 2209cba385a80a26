#include "text/text_files.h"

#include "text/json_fields.h"
#include "text/pre_tokenizer.h"
#include "text/sentencepiece.h"
#include "text/tokenizer_steps.h"

namespace terrace {
namespace {

Json TokenizerJson(const BpeData& data) {
  const bool marks_spaces = FindPreTokenizer(data.pre)->marks_spaces;
  Json vocab = Json::object(), merges = Json::array(), added = Json::array();
  std::map<std::string_view, size_t>
      ids_of_bytes;  // of characters that are merged by the token of their byte
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    vocab[data.tokens[id]] = id;
    const std::string_view name = NameInMerges(data.tokens[id]);
    if (marks_spaces && name != data.tokens[id]) ids_of_bytes.emplace(name, id);
  }
  for (const auto& [left, right] : data.merges) {
    merges.push_back(Json::array({left, right}));
    for (const std::string& name : {left, right}) {
      if (!vocab.contains(name)) vocab[name] = ids_of_bytes.at(name);
    }
  }
  for (const auto& token : data.added) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"special", token.is_control},
                     {"normalized", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"single_word", false}});
  }
  Json model = {{"type", "BPE"},
                {"byte_fallback", marks_spaces},
                {"ignore_merges", data.pre == "llama-bpe"},
                {"vocab", std::move(vocab)},
                {"merges", std::move(merges)}};
  if (!data.ties.empty()) model["merge_ties"] = data.ties;
  Json json = StepsJson({.pre = data.pre, .is_normalized = data.is_normalized});
  json["version"] = "1.0";
  json["added_tokens"] = std::move(added);
  json["post_processor"] = nullptr;
  json["model"] = std::move(model);
  return json;
}

}  // namespace

BpeData DataOf(const Tokenizer& tokenizer) {
  const auto json = ParseJsonData(tokenizer.Serialize());
  CHECK(json.ok(), Message(json.status()));
  const Json &tokens = (*json)["tokens"], &merges = (*json)["merges"], &special = (*json)["special"];
  BpeData data;
  data.pre = (*json)["pre"].get<std::string>();
  data.tokens = tokens.get<std::vector<std::string>>();
  data.is_normalized = json->value("nfc", false);
  data.ties = json->value("ties", std::vector<uint32_t>());
  const bool marks_spaces = FindPreTokenizer(data.pre)->marks_spaces;
  const auto name_of = [&](const Json& id) {
    const std::string& token = data.tokens[id.get<size_t>()];
    return std::string(marks_spaces ? NameInMerges(token) : token);
  };
  for (size_t i = 0; i < merges.size(); i += 2)
    data.merges.emplace_back(name_of(merges[i]), name_of(merges[i + 1]));
  for (const Json& token : (*json)["added"]) {
    const auto id = token[0].get<TokenId>();
    data.added.push_back({id, data.tokens[static_cast<size_t>(id)], token[1].get<bool>()});
  }
  data.special = {.bos = special["bos"].get<TokenId>(),
                  .end = special["end"].get<std::vector<TokenId>>(),
                  .pad = special["pad"].get<TokenId>(),
                  .add_bos = special["add_bos"].get<bool>()};
  return data;
}

std::map<std::string, std::string> TextFiles(const TextAssets& assets) {
  const BpeData data = DataOf(*assets.tokenizer);
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false},
                 {"add_bos_token", data.special.add_bos}};
  if (!assets.bos_text.empty()) config["bos_token"] = assets.bos_text;
  if (!assets.eos_text.empty()) config["eos_token"] = assets.eos_text;
  if (assets.chat_template != nullptr) config["chat_template"] = assets.chat_template->source();
  Json generation = Json::object();
  if (data.special.bos != -1) generation["bos_token_id"] = data.special.bos;
  if (data.special.pad != -1) generation["pad_token_id"] = data.special.pad;
  if (!data.special.end.empty()) generation["eos_token_id"] = data.special.end;
  return {{"tokenizer.json", ToJsonText(TokenizerJson(data))},
          {"tokenizer_config.json", ToJsonText(config)},
          {"generation_config.json", ToJsonText(generation)}};
}

}  // namespace terrace
