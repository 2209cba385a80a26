// Hugging Face's tokenizer.json, as far as it describes BPE, byte-level or in the manner of SentencePiece.
#include <algorithm>
#include <set>

#include "text/json_fields.h"
#include "text/pre_tokenizer.h"
#include "text/sentencepiece.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_steps.h"

namespace terrace {
namespace {

constexpr int64_t kMaxTokenId = (int64_t{1} << 20) - 1;

Status Unsupported(const std::string& key, std::string_view why) {
  return WithReason(DataLoss(key, ": ", why), "unsupported_tokenizer");
}

// Added tokens are looked for in the text as it stands. Those that are "normalized" are brought to the form
// of normalized text themselves, and looked for in that: the same, unless a space or a mark for one is put
// in.
bool IsFoundAsItStands(const JsonReader& entry, const std::string& content, const PreTokenizer& pre) {
  if (!pre.marks_spaces || !entry.Bool("normalized").value_or(!entry.Bool("special").value_or(false)))
    return true;
  if (pre.prefix == SpacePrefix::kAlways) return false;
  return pre.prefix != SpacePrefix::kNone ||
         (content.find(' ') == std::string::npos && content.find(kSpaceMark) == std::string::npos);
}

Status ReadAddedTokens(const JsonReader& root, BpeData& data) {
  const auto pre = FindPreTokenizer(data.pre);
  if (!root.Has("added_tokens")) return Status();
  ASSIGN_OR_RETURN(const JsonReader list, root.Array("added_tokens"));
  for (size_t i = 0; i < list.size(); ++i) {
    ASSIGN_OR_RETURN(const JsonReader entry, list.Object(i));
    ASSIGN_OR_RETURN(const int64_t id, entry.Integer("id", 0, kMaxTokenId, "bad_added_token"));
    ASSIGN_OR_RETURN(const std::string content, entry.Text("content"));
    for (const std::string_view flag : {"lstrip", "rstrip", "single_word"}) {
      if (entry.Bool(flag).value_or(false)) return Unsupported(entry.KeyOf(flag), "not supported");
    }
    if (!IsFoundAsItStands(entry, content, *pre))
      return Unsupported(entry.KeyOf("normalized"), "not supported with this normalizer");
    if (static_cast<size_t>(id) >= data.tokens.size()) data.tokens.resize(id + 1);
    if (data.tokens[id].empty()) data.tokens[id] = content;
    data.added.push_back({static_cast<TokenId>(id), content, entry.Bool("special").value_or(false)});
  }
  return Status();
}

// Whether two texts of one token are the byte and its character, as "<0x09>" and "\t" in Gemma's vocabulary.
bool IsByteAndCharacter(std::string_view byte, std::string_view character) {
  return byte != character && NameInMerges(byte) == character;
}

Status ReadVocabulary(const JsonReader& root, const JsonReader& model, BpeData& data) {
  ASSIGN_OR_RETURN(const JsonReader vocab, model.Object("vocab"));
  const bool has_bytes = FindPreTokenizer(data.pre)->marks_spaces;
  for (const auto& [token, ignored] : vocab.value().items()) {
    ASSIGN_OR_RETURN(const int64_t id, vocab.Integer(std::string_view(token), 0, kMaxTokenId, "vocab_size"));
    if (static_cast<size_t>(id) >= data.tokens.size()) data.tokens.resize(id + 1);
    std::string& known = data.tokens[id];
    if (has_bytes && IsByteAndCharacter(known, token)) continue;
    if (!known.empty() && !(has_bytes && IsByteAndCharacter(token, known))) {
      return WithReason(DataLoss(vocab.KeyOf(token), ": id ", id, " is also \"", known, "\""), "vocab_size");
    }
    known = token;
  }
  RETURN_IF_ERROR(ReadAddedTokens(root, data));
  const auto hole = std::ranges::find(data.tokens, "");
  if (hole == data.tokens.end()) return Status();
  return WithReason(DataLoss("model.vocab: no token has id ", hole - data.tokens.begin(), ", the highest is ",
                             data.tokens.size() - 1),
                    "vocab_size");
}

// Takes out what merges to a control token or to that of a byte, or from one. Converters from SentencePiece
// make a merge of any two tokens that are a third one joined; there, text never becomes such a token.
void DropMergesToControl(BpeData& data) {
  std::set<std::string_view> control;
  for (const auto& added : data.added) {
    if (added.is_control) control.insert(added.content);
  }
  const auto is_taken = [&](const std::string& name) { return control.contains(name) || ByteOfToken(name); };
  std::erase_if(data.merges, [&](const auto& merge) {
    return is_taken(merge.first) || is_taken(merge.second) || is_taken(merge.first + merge.second);
  });
}

Status ReadMerges(const JsonReader& model, BpeData& data) {
  ASSIGN_OR_RETURN(const JsonReader merges, model.Array("merges"));
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    if (const auto pair = merges.Array(rank); pair.ok()) {
      if (pair->size() != 2) return WithReason(DataLoss(pair->key(), ": not two tokens"), "bad_merge");
      ASSIGN_OR_RETURN(std::string left, pair->Text(size_t{0}));
      ASSIGN_OR_RETURN(std::string right, pair->Text(size_t{1}));
      data.merges.emplace_back(std::move(left), std::move(right));
      continue;
    }
    ASSIGN_OR_RETURN(const std::string text, merges.Text(rank));
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return WithReason(DataLoss(merges.KeyOf(rank), ": not two tokens with a space between"), "bad_merge");
    }
    data.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  if (!model.Has("merge_ties")) {
    if (FindPreTokenizer(data.pre)->marks_spaces) DropMergesToControl(data);
    return Status();
  }
  ASSIGN_OR_RETURN(const JsonReader ties, model.Array("merge_ties"));
  for (size_t i = 0; i < ties.size(); ++i) {
    ASSIGN_OR_RETURN(const int64_t count, ties.Integer(i, 1, UINT32_MAX, "bad_merge"));
    data.ties.push_back(static_cast<uint32_t>(count));
  }
  return Status();
}

// Whether the post_processor puts the token `bos` in front of a text.
bool PostProcessorAddsBos(const JsonReader& processor, const std::string& bos) {
  if (const auto steps = processor.Array("processors"); steps.ok()) {
    for (size_t i = 0; i < steps->size(); ++i) {
      const auto step = steps->Object(i);
      if (step.ok() && step->Text("type").value_or("") == "TemplateProcessing" &&
          PostProcessorAddsBos(*step, bos))
        return true;
    }
    return false;
  }
  const auto single = processor.Array("single");
  if (!single.ok()) return false;
  const auto first = single->Object(size_t{0});
  if (!first.ok()) return false;
  const auto token = first->Object("SpecialToken");
  return token.ok() && token->Text("id").value_or("") == bos;
}

StatusOr<BpeData> ReadTokenizer(const JsonReader& root) {
  BpeData data;
  ASSIGN_OR_RETURN(const JsonReader model, root.Object("model"));
  ASSIGN_OR_RETURN(const TokenizerSteps steps, ReadSteps(root, model));
  data.pre = steps.pre;
  data.is_normalized = steps.is_normalized;
  RETURN_IF_ERROR(ReadVocabulary(root, model, data));
  RETURN_IF_ERROR(ReadMerges(model, data));
  return data;
}

StatusOr<TokenId> IdOf(const BpeData& data, const std::string& token, std::string_view key) {
  const auto found = std::ranges::find(data.tokens, token);
  if (found != data.tokens.end()) return static_cast<TokenId>(found - data.tokens.begin());
  return WithReason(DataLoss(key, ": \"", token, "\" is not a token"), "bad_special_id");
}

Status CheckId(const BpeData& data, int64_t id, std::string_view key) {
  if (id < static_cast<int64_t>(data.tokens.size())) return Status();
  return WithReason(DataLoss(key, ": id ", id, " of ", data.tokens.size(), " tokens"), "bad_special_id");
}

// The names of tokenizer_config.json first, then the ids of generation_config.json; an answer may end with
// the end tokens of both.
Status ReadSpecialTokens(const std::string& directory, const JsonReader& root, BpeData& data) {
  ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(directory));
  ASSIGN_OR_RETURN(const GenerationConfig generation, ReadGenerationConfig(directory));
  const std::string config_path = directory + "/tokenizer_config.json: ";
  const std::string generation_path = directory + "/generation_config.json: ";
  const auto choose = [&](const std::optional<std::string>& token, const std::optional<int64_t>& id,
                          const std::string& name) -> StatusOr<TokenId> {
    if (token) return IdOf(data, *token, config_path + name);
    if (!id) return TokenId{-1};
    RETURN_IF_ERROR(CheckId(data, *id, Concat(generation_path, name, "_id")));
    return static_cast<TokenId>(*id);
  };
  SpecialTokens& special = data.special;
  ASSIGN_OR_RETURN(special.bos, choose(config.bos_token, generation.bos_token_id, "bos_token"));
  ASSIGN_OR_RETURN(special.pad, choose(config.pad_token, generation.pad_token_id, "pad_token"));
  if (config.eos_token) {
    ASSIGN_OR_RETURN(const TokenId id, IdOf(data, *config.eos_token, config_path + "eos_token"));
    special.end.push_back(id);
  }
  for (const int64_t id : generation.eos_token_ids) {
    RETURN_IF_ERROR(CheckId(data, id, generation_path + "eos_token_id"));
    special.end.push_back(static_cast<TokenId>(id));
  }
  if (special.bos == -1) return Status();
  const auto processor = root.Object("post_processor");
  special.add_bos = config.add_bos_token.value_or(processor.ok() &&
                                                  PostProcessorAddsBos(*processor, data.tokens[special.bos]));
  return Status();
}

}  // namespace

StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(const std::string& directory) {
  const std::string path = directory + "/tokenizer.json";
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  const JsonReader root(json, "");
  auto data = ReadTokenizer(root);
  if (!data.ok()) return Annotate(data.status(), path);
  RETURN_IF_ERROR(ReadSpecialTokens(directory, root, *data));
  auto tokenizer = MakeBpeTokenizer(*std::move(data), {.tokens = "model.vocab",
                                                       .merges = "model.merges",
                                                       .ties = "model.merge_ties",
                                                       .added = "added_tokens",
                                                       .pre = "pre_tokenizer"});
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), path);
  return tokenizer;
}

}  // namespace terrace
