#include "worker/formats/gguf_tokenizer.h"

#include <algorithm>
#include <span>
#include <unordered_map>

#include "base/json.h"
#include "text/pre_tokenizer.h"
#include "text/sentencepiece.h"
#include "text/text_files.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/model_config.h"

namespace terrace {
namespace {

constexpr std::string_view kModel = "tokenizer.ggml.model", kPre = "tokenizer.ggml.pre",
                           kTokens = "tokenizer.ggml.tokens", kTypes = "tokenizer.ggml.token_type",
                           kScores = "tokenizer.ggml.scores",
                           kAddSpacePrefix = "tokenizer.ggml.add_space_prefix",
                           kMerges = "tokenizer.ggml.merges", kBos = "tokenizer.ggml.bos_token_id",
                           kEos = "tokenizer.ggml.eos_token_id", kEot = "tokenizer.ggml.eot_token_id",
                           kEom = "tokenizer.ggml.eom_token_id", kPad = "tokenizer.ggml.padding_token_id",
                           kAddBos = "tokenizer.ggml.add_bos_token", kTemplate = "tokenizer.chat_template",
                           kWhole = "terrace.tokenizer";

constexpr size_t kMaxTokenBytes = 65'535;
// token_type
constexpr int64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;
// What ends a turn in models whose files have no key for it; llama.cpp looks for these as well.
constexpr std::string_view kTurnEnds[] = {"<end_of_turn>", "<|im_end|>", "<|eot_id|>"};

// The strings of an array that has at most `limit` of them.
StatusOr<std::vector<std::string_view>> Strings(const GgufMetadata& metadata, std::string_view key,
                                                uint64_t limit, std::string_view reason) {
  const auto found = metadata.values().find(key);
  if (found != metadata.values().end() && found->second.count > limit)
    return metadata.Error(reason, key, Concat(found->second.count, " entries, limit ", limit));
  return metadata.Strings(key);
}

Status ReadTokens(const GgufMetadata& metadata, BpeData& data) {
  ASSIGN_OR_RETURN(const auto tokens, Strings(metadata, kTokens, kMaxVocab, "vocab_size"));
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].size() > kMaxTokenBytes)
      return metadata.Error("vocab_size", kTokens,
                            Concat("token ", i, " has ", tokens[i].size(), " bytes, limit ", kMaxTokenBytes));
    data.tokens.emplace_back(tokens[i]);
  }
  return Status();
}

// Whether a token of this text may have this type. `has_bytes`: SentencePiece, whose tokens of bytes have a
// type of their own.
bool IsTypeOf(std::string_view token, int64_t type, bool has_bytes) {
  if (has_bytes && (type == kByte || ByteOfToken(token))) return type == kByte && ByteOfToken(token);
  return type >= kNormal && type <= kUnused;
}

Status ReadTypes(const GgufMetadata& metadata, bool has_bytes, BpeData& data) {
  ASSIGN_OR_RETURN(const auto types, metadata.Integers(kTypes));
  if (types.size() != data.tokens.size())
    return metadata.Error("vocab_size", kTypes,
                          Concat(types.size(), " types for ", data.tokens.size(), " tokens"));
  for (size_t i = 0; i < types.size(); ++i) {
    if (!IsTypeOf(data.tokens[i], types[i], has_bytes))
      return metadata.Error("bad_token_type", kTypes,
                            Concat("token ", i, " has type ", types[i], ", which ",
                                   has_bytes ? "it cannot have in SentencePiece" : "byte-level BPE has not"));
    const bool is_control = types[i] == kControl || (has_bytes && types[i] == kUnknown);
    if (is_control || types[i] == kUserDefined)
      data.added.push_back({static_cast<TokenId>(i), data.tokens[i], is_control});
  }
  return Status();
}

Status ReadMerges(const GgufMetadata& metadata, BpeData& data) {
  ASSIGN_OR_RETURN(const auto merges, Strings(metadata, kMerges, 4 * kMaxVocab, "bad_merge"));
  for (size_t i = 0; i < merges.size(); ++i) {
    const size_t space = merges[i].find(' ');
    if (space == std::string_view::npos || space == 0 || space + 1 == merges[i].size() ||
        merges[i].find(' ', space + 1) != std::string_view::npos)
      return metadata.Error("bad_merge", kMerges,
                            Concat("merge ", i, " is not two tokens and a space between them"));
    data.merges.emplace_back(merges[i].substr(0, space), merges[i].substr(space + 1));
  }
  return Status();
}

// -1 when the key is absent.
StatusOr<TokenId> ReadId(const GgufMetadata& metadata, std::string_view key, size_t vocab_size) {
  if (!metadata.Has(key)) return -1;
  ASSIGN_OR_RETURN(const int64_t id, metadata.Integer(key));
  if (id < 0 || static_cast<uint64_t>(id) >= vocab_size)
    return metadata.Error("bad_special_id", key, Concat(id, " is not one of ", vocab_size, " tokens"));
  return static_cast<TokenId>(id);
}

StatusOr<SpecialTokens> ReadSpecial(const GgufMetadata& metadata, size_t vocab_size) {
  SpecialTokens special;
  ASSIGN_OR_RETURN(special.bos, ReadId(metadata, kBos, vocab_size));
  ASSIGN_OR_RETURN(special.pad, ReadId(metadata, kPad, vocab_size));
  for (const std::string_view key : {kEos, kEot, kEom}) {
    ASSIGN_OR_RETURN(const TokenId id, ReadId(metadata, key, vocab_size));
    if (id >= 0 && std::find(special.end.begin(), special.end.end(), id) == special.end.end())
      special.end.push_back(id);
  }
  if (metadata.Has(kAddBos)) {
    ASSIGN_OR_RETURN(special.add_bos, metadata.Bool(kAddBos));
  }
  return special;
}

// What llama.cpp takes without a key in files of SentencePiece.
void AddUnsaid(const GgufMetadata& metadata, BpeData& data) {
  if (!metadata.Has(kAddBos)) data.special.add_bos = data.special.bos != -1;
  if (metadata.Has(kEot)) return;
  for (const auto& added : data.added) {
    if (std::ranges::find(kTurnEnds, added.content) != std::end(kTurnEnds))
      data.special.end.push_back(added.id);
  }
}

std::string Quoted(std::string_view key) { return Concat("key \"", key, "\""); }

// An error that begins with a key's name gets the place of its value.
Status WithPlace(const GgufMetadata& metadata, const Status& status) {
  for (const std::string_view key : {kPre, kTokens, kTypes, kMerges}) {
    if (!status.ok() && Message(status).starts_with(Quoted(key)))
      return Malformed(Reason(status), Message(status), " (value at byte ", metadata.values().at(key).offset,
                       ")");
  }
  return status;
}

StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(const GgufMetadata& metadata, BpeData data) {
  auto tokenizer = MakeBpeTokenizer(
      std::move(data),
      {.tokens = Quoted(kTokens), .merges = Quoted(kMerges), .added = Quoted(kTypes), .pre = Quoted(kPre)});
  if (!tokenizer.ok()) return WithPlace(metadata, tokenizer.status());
  return tokenizer;
}

Status ReadByteLevel(const GgufMetadata& metadata, BpeData& data) {
  ASSIGN_OR_RETURN(const std::string_view pre, metadata.String(kPre));
  const auto kind = FindPreTokenizer(pre);
  if (kind && kind->marks_spaces)
    return metadata.Error("unsupported_pre_tokenizer", kPre, Concat("\"", pre, "\" is not byte-level"));
  data.pre = pre;
  data.is_normalized = kind && kind->name == "qwen2";
  RETURN_IF_ERROR(ReadTypes(metadata, /*has_bytes=*/false, data));
  return ReadMerges(metadata, data);
}

Status ReadSentencePiece(const GgufMetadata& metadata, BpeData& data) {
  bool adds_space = true;
  if (metadata.Has(kAddSpacePrefix)) {
    ASSIGN_OR_RETURN(adds_space, metadata.Bool(kAddSpacePrefix));
  }
  data.pre = adds_space ? "spm" : "spm-none";
  RETURN_IF_ERROR(ReadTypes(metadata, /*has_bytes=*/true, data));
  ASSIGN_OR_RETURN(const std::vector<float> scores, metadata.Floats(kScores));
  if (scores.size() != data.tokens.size())
    return metadata.Error("vocab_size", kScores,
                          Concat(scores.size(), " scores for ", data.tokens.size(), " tokens"));
  AddUnsaid(metadata, data);
  return WithPlace(metadata, SetMergesOfScores(scores, Quoted(kTokens), data));
}

// Puts the tokenizer of kWhole in the place of what is not in other keys.
Status ReadWhole(const GgufMetadata& metadata, BpeData& data) {
  ASSIGN_OR_RETURN(const std::string_view serialized, metadata.String(kWhole));
  const auto tokenizer = ParseTokenizer(serialized);
  if (!tokenizer.ok()) return metadata.Error(Reason(tokenizer.status()), kWhole, Message(tokenizer.status()));
  BpeData whole = DataOf(**tokenizer);
  if (whole.tokens != data.tokens)
    return metadata.Error("bad_value", kWhole, Concat("has other tokens than ", Quoted(kTokens)));
  whole.special = std::move(data.special);
  data = std::move(whole);
  return Status();
}

StatusOr<TextAssets> Load(const GgufMetadata& metadata) {
  ASSIGN_OR_RETURN(const std::string_view model, metadata.String(kModel));
  if (model != "gpt2" && model != "llama")
    return metadata.Error("unsupported_tokenizer", kModel,
                          Concat(ToJsonText(std::string(model.substr(0, 64))),
                                 " is not supported; supported are \"gpt2\" and \"llama\""));
  BpeData data;
  RETURN_IF_ERROR(ReadTokens(metadata, data));
  ASSIGN_OR_RETURN(data.special, ReadSpecial(metadata, data.tokens.size()));
  RETURN_IF_ERROR(metadata.Has(kWhole) ? ReadWhole(metadata, data)
                  : model == "gpt2"    ? ReadByteLevel(metadata, data)
                                       : ReadSentencePiece(metadata, data));

  TextAssets assets;
  const auto text_of = [&](TokenId id) {
    return id < 0 ? std::string() : data.tokens[static_cast<size_t>(id)];
  };
  ASSIGN_OR_RETURN(const TokenId eos, ReadId(metadata, kEos, data.tokens.size()));
  assets.bos_text = text_of(data.special.bos);
  assets.eos_text = text_of(eos);
  ASSIGN_OR_RETURN(assets.tokenizer, MakeTokenizer(metadata, std::move(data)));
  if (metadata.Has(kTemplate)) {
    ASSIGN_OR_RETURN(const std::string_view source, metadata.String(kTemplate));
    auto chat_template = ChatTemplate::Parse(source);
    if (!chat_template.ok())
      return metadata.Error(Reason(chat_template.status()), kTemplate, Message(chat_template.status()));
    assets.chat_template = *std::move(chat_template);
  }
  return assets;
}

// Of tokens that merges make, the higher the earlier their first merge comes; of others the lowest.
std::vector<float> ScoresOf(const BpeData& data) {
  std::unordered_map<std::string_view, size_t> ids;
  for (size_t id = 0; id < data.tokens.size(); ++id) ids.emplace(data.tokens[id], id);
  std::vector<float> scores(data.tokens.size(), -static_cast<float>(data.merges.size()));
  size_t merge = 0;
  for (size_t rank = 0; merge < data.merges.size(); ++rank) {
    const size_t end = merge + (data.ties.empty() ? 1 : data.ties[rank]);
    for (; merge < end; ++merge) {
      const auto merged = ids.find(data.merges[merge].first + data.merges[merge].second);
      float& score = scores[merged->second];
      score = std::max(score, -static_cast<float>(rank));
    }
  }
  return scores;
}

std::vector<int32_t> TypesOf(const BpeData& data, size_t used_tokens, bool has_bytes) {
  std::vector<int32_t> types(data.tokens.size(), kNormal);
  std::fill(types.begin() + static_cast<std::ptrdiff_t>(std::min(used_tokens, types.size())), types.end(),
            kUnused);
  for (size_t id = 0; id < types.size(); ++id) {
    if (has_bytes && ByteOfToken(data.tokens[id])) types[id] = kByte;
  }
  for (const auto& token : data.added) {
    // llama.cpp shows the text of a user-defined token as it is, marks for spaces and all.
    const bool has_mark = has_bytes && token.content.find(kSpaceMark) != std::string::npos;
    if (token.is_control || !has_mark)
      types[static_cast<size_t>(token.id)] = token.is_control ? kControl : kUserDefined;
  }
  return types;
}

// Whether LoadGgufText makes the tokenizer of `assets` of `keys`.
bool IsReadBack(const std::vector<GgufKey>& keys, const TextAssets& assets) {
  const std::string head = GgufHead(keys, {});
  const auto contents = ParseGguf(std::as_bytes(std::span(head)));
  if (!contents.ok()) return false;
  const auto read = Load(contents->metadata);
  return read.ok() && read->tokenizer->Serialize() == assets.tokenizer->Serialize();
}

}  // namespace

StatusOr<TextAssets> LoadGgufText(const GgufMetadata& metadata, const std::string& file) {
  auto assets = Load(metadata);
  if (!assets.ok()) return Annotate(AsDataLoss(assets.status()), file);
  return assets;
}

StatusOr<std::vector<GgufKey>> GgufTextKeys(const TextAssets& assets, size_t used_tokens) {
  const BpeData data = DataOf(*assets.tokenizer);
  const PreTokenizer pre = *FindPreTokenizer(data.pre);
  std::vector<TokenId> end = data.special.end;  // the one that the template calls eos_token first
  std::ranges::stable_partition(
      end, [&](TokenId id) { return data.tokens[static_cast<size_t>(id)] == assets.eos_text; });
  constexpr std::string_view kEndKeys[] = {kEos, kEot, kEom};
  if (end.size() > std::size(kEndKeys))
    return InvalidArgument("the tokenizer has ", end.size(), " end tokens, GGUF has keys for ",
                           std::size(kEndKeys));

  std::vector<GgufKey> keys;
  const auto add = [&keys](std::string_view name, GgufField value) {
    keys.push_back({std::string(name), std::move(value)});
  };
  const GgufField types = GgufInts(TypesOf(data, used_tokens, pre.marks_spaces));
  if (pre.marks_spaces) {
    add(kModel, GgufString("llama"));
    add(kPre, GgufString("default"));
    add(kTokens, GgufStrings(data.tokens));
    add(kScores, GgufFloats(ScoresOf(data)));
    add(kTypes, types);
    add(kAddSpacePrefix, GgufBool(pre.prefix != SpacePrefix::kNone));
  } else {
    std::vector<std::string> merges;
    for (const auto& [left, right] : data.merges) merges.push_back(Concat(left, " ", right));
    add(kModel, GgufString("gpt2"));
    add(kPre, GgufString(data.pre == "gpt2" ? "gpt-2" : data.pre));  // llama.cpp knows this name only
    add(kTokens, GgufStrings(data.tokens));
    add(kTypes, types);
    add(kMerges, GgufStrings(merges));
  }
  for (size_t i = 0; i < end.size(); ++i) add(kEndKeys[i], GgufU32(static_cast<uint32_t>(end[i])));
  if (data.special.bos != -1) add(kBos, GgufU32(static_cast<uint32_t>(data.special.bos)));
  if (data.special.pad != -1) add(kPad, GgufU32(static_cast<uint32_t>(data.special.pad)));
  add(kAddBos, GgufBool(data.special.add_bos));
  if (assets.chat_template != nullptr) add(kTemplate, GgufString(assets.chat_template->source()));
  if (!IsReadBack(keys, assets)) add(kWhole, GgufString(assets.tokenizer->Serialize()));
  return keys;
}

}  // namespace terrace
