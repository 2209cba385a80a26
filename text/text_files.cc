#include "text/text_files.h"

#include "text/json_fields.h"
#include "text/split_patterns.h"

namespace terrace {
namespace {

Json ByteLevel(bool with_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", with_regex}};
}

Json Sequence(Json first, Json second) {
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({std::move(first), std::move(second)})}};
}

// `pre` is a name of pre_tokenizer.h.
Json PreTokenizerJson(std::string_view pre) {
  if (pre == "gpt2") return ByteLevel(/*with_regex=*/true);
  if (pre == "smollm")
    return Sequence({{"type", "Digits"}, {"individual_digits", true}}, ByteLevel(/*with_regex=*/true));
  const bool is_qwen2 = pre == "qwen2";
  CHECK(is_qwen2 || pre == "llama-bpe" || pre == "dbrx", pre);
  const std::string pattern(is_qwen2 ? kQwen2Pattern : kLlama3Pattern);
  return Sequence(
      {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
      ByteLevel(/*with_regex=*/false));
}

Json TokenizerJson(const BpeData& data) {
  Json vocab = Json::object(), merges = Json::array(), added = Json::array();
  for (size_t id = 0; id < data.tokens.size(); ++id) vocab[data.tokens[id]] = id;
  for (const auto& [left, right] : data.merges) merges.push_back(Json::array({left, right}));
  for (const auto& token : data.added) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"special", token.is_control},
                     {"normalized", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"single_word", false}});
  }
  return {{"version", "1.0"},
          {"added_tokens", std::move(added)},
          {"normalizer", nullptr},
          {"pre_tokenizer", PreTokenizerJson(data.pre)},
          {"post_processor", nullptr},
          {"decoder", ByteLevel(/*with_regex=*/true)},
          {"model",
           {{"type", "BPE"},
            {"ignore_merges", data.pre == "llama-bpe"},
            {"vocab", std::move(vocab)},
            {"merges", std::move(merges)}}}};
}

}  // namespace

BpeData DataOf(const Tokenizer& tokenizer) {
  const auto json = ParseJsonData(tokenizer.Serialize());
  CHECK(json.ok(), Message(json.status()));
  const Json &tokens = (*json)["tokens"], &merges = (*json)["merges"], &special = (*json)["special"];
  BpeData data;
  data.pre = (*json)["pre"].get<std::string>();
  data.tokens = tokens.get<std::vector<std::string>>();
  for (size_t i = 0; i < merges.size(); i += 2)
    data.merges.emplace_back(data.tokens[merges[i].get<size_t>()], data.tokens[merges[i + 1].get<size_t>()]);
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
