#include "worker/formats/gguf_tokenizer.h"

#include <algorithm>
#include <limits>

#include "base/json.h"
#include "text/text_files.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/model_config.h"

namespace terrace {
namespace {

constexpr std::string_view kModel = "tokenizer.ggml.model", kPre = "tokenizer.ggml.pre",
                           kTokens = "tokenizer.ggml.tokens", kTypes = "tokenizer.ggml.token_type",
                           kMerges = "tokenizer.ggml.merges", kBos = "tokenizer.ggml.bos_token_id",
                           kEos = "tokenizer.ggml.eos_token_id", kEot = "tokenizer.ggml.eot_token_id",
                           kEom = "tokenizer.ggml.eom_token_id", kPad = "tokenizer.ggml.padding_token_id",
                           kAddBos = "tokenizer.ggml.add_bos_token", kTemplate = "tokenizer.chat_template";

constexpr size_t kMaxTokenBytes = 65'535;
constexpr int64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5;  // token_type

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
  ASSIGN_OR_RETURN(const auto types, metadata.Integers(kTypes));
  if (types.size() != tokens.size())
    return metadata.Error("vocab_size", kTypes,
                          Concat(types.size(), " types for ", tokens.size(), " tokens"));
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].size() > kMaxTokenBytes)
      return metadata.Error("vocab_size", kTokens,
                            Concat("token ", i, " has ", tokens[i].size(), " bytes, limit ", kMaxTokenBytes));
    data.tokens.emplace_back(tokens[i]);
    switch (types[i]) {
      case kNormal:
      case kUnknown:
      case kUnused:
        break;
      case kControl:
      case kUserDefined:
        data.added.push_back({static_cast<TokenId>(i), std::string(tokens[i]), types[i] == kControl});
        break;
      default:
        return metadata.Error("bad_token_type", kTypes,
                              Concat("token ", i, " has type ", types[i], ", which byte-level BPE has not"));
    }
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

std::string Quoted(std::string_view key) { return Concat("key \"", key, "\""); }

// MakeBpeTokenizer, whose errors begin with the key's name; they get the place of its value.
StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(const GgufMetadata& metadata, BpeData data) {
  auto tokenizer = MakeBpeTokenizer(
      std::move(data),
      {.tokens = Quoted(kTokens), .merges = Quoted(kMerges), .added = Quoted(kTypes), .pre = Quoted(kPre)});
  const Status& status = tokenizer.status();
  for (const std::string_view key : {kPre, kTokens, kTypes, kMerges}) {
    if (!status.ok() && Message(status).starts_with(Quoted(key)))
      return Malformed(Reason(status), Message(status), " (value at byte ", metadata.values().at(key).offset,
                       ")");
  }
  return tokenizer;
}

StatusOr<TextAssets> Load(const GgufMetadata& metadata) {
  ASSIGN_OR_RETURN(const std::string_view model, metadata.String(kModel));
  if (model != "gpt2")
    return metadata.Error(
        "unsupported_tokenizer", kModel,
        Concat(ToJsonText(std::string(model.substr(0, 64))), " is not supported; supported is \"gpt2\""));
  BpeData data;
  ASSIGN_OR_RETURN(const std::string_view pre, metadata.String(kPre));
  data.pre = pre;
  RETURN_IF_ERROR(ReadTokens(metadata, data));
  RETURN_IF_ERROR(ReadMerges(metadata, data));
  ASSIGN_OR_RETURN(data.special, ReadSpecial(metadata, data.tokens.size()));

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

}  // namespace

StatusOr<TextAssets> LoadGgufText(const GgufMetadata& metadata, const std::string& file) {
  auto assets = Load(metadata);
  if (!assets.ok()) return Annotate(AsDataLoss(assets.status()), file);
  return assets;
}

StatusOr<std::vector<GgufKey>> GgufTextKeys(const TextAssets& assets, size_t used_tokens) {
  const BpeData data = DataOf(*assets.tokenizer);
  std::vector<int32_t> types(data.tokens.size(), kNormal);
  std::fill(types.begin() + static_cast<std::ptrdiff_t>(std::min(used_tokens, types.size())), types.end(),
            kUnused);
  for (const auto& token : data.added)
    types[static_cast<size_t>(token.id)] = token.is_control ? kControl : kUserDefined;
  std::vector<std::string> merges;
  for (const auto& [left, right] : data.merges) merges.push_back(Concat(left, " ", right));

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
  add(kModel, GgufString("gpt2"));
  add(kPre, GgufString(data.pre == "gpt2" ? "gpt-2" : data.pre));  // llama.cpp knows this name only
  add(kTokens, GgufStrings(data.tokens));
  add(kTypes, GgufInts(types));
  add(kMerges, GgufStrings(merges));
  for (size_t i = 0; i < end.size(); ++i) add(kEndKeys[i], GgufU32(static_cast<uint32_t>(end[i])));
  if (data.special.bos != -1) add(kBos, GgufU32(static_cast<uint32_t>(data.special.bos)));
  if (data.special.pad != -1) add(kPad, GgufU32(static_cast<uint32_t>(data.special.pad)));
  add(kAddBos, GgufBool(data.special.add_bos));
  if (assets.chat_template != nullptr) add(kTemplate, GgufString(assets.chat_template->source()));
  return keys;
}

}  // namespace terrace
