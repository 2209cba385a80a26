// Hugging Face's tokenizer.json, as far as it describes byte-level BPE.
#include <algorithm>

#include "text/byte_alphabet.h"
#include "text/json_fields.h"
#include "text/split_patterns.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace terrace {
namespace {

constexpr int64_t kMaxTokenId = (int64_t{1} << 20) - 1;

template <typename... Text>
Status Unsupported(std::string_view reason, const Text&... text) {
  return WithReason(DataLoss(text...), reason);
}

std::string TypeOf(const JsonReader& reader) { return reader.Text("type").value_or("(none)"); }

bool Flag(const JsonReader& reader, std::string_view name, bool otherwise) {
  return reader.Bool(name).value_or(otherwise);
}

// Whether `step` is a ByteLevel step that changes nothing but the alphabet (and cuts as gpt2, if
// `with_regex`).
bool IsByteLevel(const JsonReader& step, bool with_regex) {
  return TypeOf(step) == "ByteLevel" && !Flag(step, "add_prefix_space", true) &&
         Flag(step, "use_regex", true) == with_regex;
}

// The kind of pre_tokenizer.h for a Split step by a known expression, or "". The expressions match every
// character, so that isolating the matches and removing what lies between them are the same.
std::string_view SplitKind(const JsonReader& step, bool ignores_merges) {
  const auto pattern = step.Object("pattern");
  if (TypeOf(step) != "Split" || !pattern.ok()) return "";
  const std::string behavior = step.Text("behavior").value_or("");
  if (behavior != (Flag(step, "invert", false) ? "Removed" : "Isolated")) return "";
  const std::string regex = pattern->Text("Regex").value_or("");
  if (regex == kGpt2Pattern) return "gpt2";
  if (regex == kQwen2Pattern) return "qwen2";
  if (regex == kLlama3Pattern) return ignores_merges ? "llama-bpe" : "dbrx";
  return "";
}

StatusOr<std::string> ReadPreTokenizer(const JsonReader& root, bool ignores_merges) {
  std::string_view kind;
  if (const auto whole = root.Object("pre_tokenizer"); whole.ok()) {
    if (IsByteLevel(*whole, /*with_regex=*/true)) kind = "gpt2";
    const auto steps = whole->Array("pretokenizers");
    if (TypeOf(*whole) == "Sequence" && steps.ok() && steps->size() == 2) {
      ASSIGN_OR_RETURN(const JsonReader first, steps->Object(size_t{0}));
      ASSIGN_OR_RETURN(const JsonReader second, steps->Object(size_t{1}));
      const bool splits_digits = TypeOf(first) == "Digits" && Flag(first, "individual_digits", false);
      if (splits_digits && IsByteLevel(second, /*with_regex=*/true)) kind = "smollm";
      if (IsByteLevel(second, /*with_regex=*/false)) kind = SplitKind(first, ignores_merges);
    }
  }
  if (kind.empty()) {
    return Unsupported("unsupported_pre_tokenizer",
                       "pre_tokenizer: not one of the supported shapes of ByteLevel, Digits and Split");
  }
  if (ignores_merges && kind != "llama-bpe") {
    return Unsupported("unsupported_pre_tokenizer",
                       "model.ignore_merges: only with Llama 3's pre_tokenizer, not ", kind);
  }
  return std::string(kind);
}

Status CheckKinds(const JsonReader& root, const JsonReader& model) {
  if (model.Has("type") && TypeOf(model) != "BPE") {
    return Unsupported("unsupported_tokenizer", "model.type: ", TypeOf(model), ", supported is BPE");
  }
  for (const std::string_view key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const bool is_empty = !model.Has(key) || model.Text(key).value_or("x").empty() || model.value()[key] == 0;
    if (!is_empty) return Unsupported("unsupported_tokenizer", model.KeyOf(key), ": not supported");
  }
  if (Flag(model, "byte_fallback", false)) {
    return Unsupported("unsupported_tokenizer", "model.byte_fallback: not supported");
  }
  if (const auto normalizer = root.Object("normalizer"); root.Has("normalizer")) {
    const std::string type = normalizer.ok() ? TypeOf(*normalizer) : "(none)";
    const bool is_empty =
        type == "Sequence" && normalizer->value().value("normalizers", Json(0)) == Json::array();
    if (type != "NFC" && !is_empty) {
      return Unsupported("unsupported_normalizer", "normalizer: type ", type, " is not supported");
    }
  }
  if (const auto decoder = root.Object("decoder"); root.Has("decoder")) {
    const std::string type = decoder.ok() ? TypeOf(*decoder) : "(none)";
    if (type != "ByteLevel")
      return Unsupported("unsupported_tokenizer", "decoder: type ", type, " is not supported");
  }
  return Status();
}

Status ReadAddedTokens(const JsonReader& root, BpeData& data) {
  if (!root.Has("added_tokens")) return Status();
  ASSIGN_OR_RETURN(const JsonReader list, root.Array("added_tokens"));
  for (size_t i = 0; i < list.size(); ++i) {
    ASSIGN_OR_RETURN(const JsonReader entry, list.Object(i));
    ASSIGN_OR_RETURN(const int64_t id, entry.Integer("id", 0, kMaxTokenId, "bad_added_token"));
    ASSIGN_OR_RETURN(const std::string content, entry.Text("content"));
    for (const std::string_view flag : {"lstrip", "rstrip", "single_word"}) {
      if (Flag(entry, flag, false))
        return Unsupported("unsupported_tokenizer", entry.KeyOf(flag), ": not supported");
    }
    if (static_cast<size_t>(id) >= data.tokens.size()) data.tokens.resize(id + 1);
    if (data.tokens[id].empty()) data.tokens[id] = content;
    data.added.push_back({static_cast<TokenId>(id), content, Flag(entry, "special", false)});
  }
  return Status();
}

Status ReadVocabulary(const JsonReader& root, const JsonReader& model, BpeData& data) {
  ASSIGN_OR_RETURN(const JsonReader vocab, model.Object("vocab"));
  for (const auto& [token, ignored] : vocab.value().items()) {
    ASSIGN_OR_RETURN(const int64_t id, vocab.Integer(std::string_view(token), 0, kMaxTokenId, "vocab_size"));
    if (static_cast<size_t>(id) >= data.tokens.size()) data.tokens.resize(id + 1);
    if (!data.tokens[id].empty()) {
      return WithReason(DataLoss(vocab.KeyOf(token), ": id ", id, " is also \"", data.tokens[id], "\""),
                        "vocab_size");
    }
    data.tokens[id] = token;
  }
  RETURN_IF_ERROR(ReadAddedTokens(root, data));
  const auto hole = std::ranges::find(data.tokens, "");
  if (hole == data.tokens.end()) return Status();
  return WithReason(DataLoss("model.vocab: no token has id ", hole - data.tokens.begin(), ", the highest is ",
                             data.tokens.size() - 1),
                    "vocab_size");
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
  return Status();
}

// Whether the post_processor puts the token `bos` in front of a text.
bool PostProcessorAddsBos(const JsonReader& processor, const std::string& bos) {
  if (const auto steps = processor.Array("processors"); steps.ok()) {
    for (size_t i = 0; i < steps->size(); ++i) {
      const auto step = steps->Object(i);
      if (step.ok() && TypeOf(*step) == "TemplateProcessing" && PostProcessorAddsBos(*step, bos)) return true;
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
  RETURN_IF_ERROR(CheckKinds(root, model));
  ASSIGN_OR_RETURN(data.pre, ReadPreTokenizer(root, Flag(model, "ignore_merges", false)));
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
  auto tokenizer = MakeBpeTokenizer(
      *std::move(data),
      {.tokens = "model.vocab", .merges = "model.merges", .added = "added_tokens", .pre = "pre_tokenizer"});
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), path);
  return tokenizer;
}

}  // namespace terrace
