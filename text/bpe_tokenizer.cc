// Byte-pair encoding: added tokens are cut out first, the rest is cut into pieces by the pre-tokenizer, and
// what each piece consists of is joined by the merges: its bytes in byte-level encoding (GPT-2's), in the
// manner of SentencePiece its characters.
#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <span>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/json.h"
#include "text/added_tokens.h"
#include "text/bpe_merger.h"
#include "text/bpe_parts.h"
#include "text/byte_alphabet.h"
#include "text/json_fields.h"
#include "text/nfc.h"
#include "text/piece_cache.h"
#include "text/pre_tokenizer.h"
#include "text/sentencepiece.h"
#include "text/token_cache.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace terrace {
namespace {

// What a cache of tokens takes: the first place for a cut behind so many bytes ends a stretch; one that is
// shorter, at a text's end, costs no more than looking it up, and one that is longer is no text.
constexpr size_t kStretchBytes = 1024, kMinStretchBytes = 64, kMaxStretchBytes = 8192;
constexpr size_t kBytesPerToken = 4;  // of most text
constexpr std::string_view kFormat = "terrace-bpe-1";

// `ranges` without empty ones and with adjacent ones joined.
std::vector<ByteRange> JoinAdjacent(const std::vector<ByteRange>& ranges) {
  std::vector<ByteRange> joined;
  for (const ByteRange& range : ranges) {
    if (range.begin >= range.end) continue;
    if (!joined.empty() && joined.back().end >= range.begin) {
      joined.back().end = std::max(joined.back().end, range.end);
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

class BpeTokenizer : public Tokenizer {
 public:
  // What MakeBpeTokenizer has checked: `index` is that of IndexTokens.
  BpeTokenizer(BpeData data, const TokenIndex& index, BpeMerger merger, const PreTokenizer& pre)
      : data_(std::move(data)), merger_(std::move(merger)), pre_(pre), added_(data_.added) {
    for (const std::string& token : data_.tokens) bytes_.push_back(BytesOf(token));
    is_control_.resize(data_.tokens.size());
    for (const auto& added : data_.added) {
      bytes_[added.id] = pre_.marks_spaces ? UnmarkSpaces(added.content) : added.content;
      is_control_[added.id] = added.is_control;
    }
    if (pre_.marks_spaces) {
      IndexCharacters(index);
      return;
    }
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = index.find(ToByteAlphabet(std::string(1, static_cast<char>(byte))));
      byte_tokens_[byte] = found == index.end() ? -1 : found->second;
    }
    if (!pre_.ignores_merges) return;
    for (const auto& [token, id] : index) whole_pieces_.try_emplace(bytes_[id], id);
  }

  // The first byte that there is no token for, in the manner of SentencePiece.
  std::optional<uint8_t> missing_byte() const {
    const auto* missing = std::ranges::find(byte_tokens_, -1);
    if (!pre_.marks_spaces || missing == byte_tokens_.end()) return std::nullopt;
    return static_cast<uint8_t>(missing - byte_tokens_.begin());
  }

  std::vector<TokenId> Encode(std::string_view text) const override { return EncodeWithControl(text, {}); }

  std::vector<TokenId> Encode(const MarkedText& text) const override {
    return EncodeWithControl(text.text, JoinAdjacent(text.control));
  }

  std::vector<TokenId> EncodeCached(std::string_view text, const std::vector<ByteRange>& control,
                                    const TokenCacheScope& cached) const override {
    return EncodeWithControl(text, JoinAdjacent(control), &cached);
  }

  std::string_view TokenBytes(TokenId token, bool with_control) const override {
    if (!Contains(token) || (is_control_[token] && !with_control)) return {};
    return bytes_[token];
  }

  bool IsControl(TokenId token) const override { return Contains(token) && is_control_[token]; }
  size_t vocab_size() const override { return bytes_.size(); }
  bool adds_space() const override { return pre_.prefix != SpacePrefix::kNone; }
  const SpecialTokens& special() const override { return data_.special; }

  std::string Serialize() const override {
    Json merges = Json::array(), added = Json::array();
    for (const auto& [left, right] : merger_.pairs()) {
      merges.push_back(left);
      merges.push_back(right);
    }
    for (const auto& token : data_.added) added.push_back(Json::array({token.id, token.is_control}));
    const SpecialTokens& special = data_.special;
    Json json = {
        {"format", kFormat},
        {"pre", pre_.name},
        {"tokens", data_.tokens},
        {"merges", std::move(merges)},
        {"added", std::move(added)},
        {"special",
         {{"bos", special.bos}, {"end", special.end}, {"pad", special.pad}, {"add_bos", special.add_bos}}}};
    if (data_.is_normalized) json["nfc"] = true;
    if (!data_.ties.empty()) json["ties"] = data_.ties;
    return ToJsonText(json);
  }

 private:
  bool Contains(TokenId token) const { return token >= 0 && static_cast<size_t>(token) < bytes_.size(); }

  // `cached`: may be null.
  std::vector<TokenId> EncodeWithControl(std::string_view text, std::span<const ByteRange> control,
                                         const TokenCacheScope* cached = nullptr) const {
    CHECK(text.size() < (size_t{1} << 31) - 1, "text of ", text.size(), " bytes");
    const auto encode = [&](std::string_view ordinary, std::vector<TokenId>& out) {
      return cached == nullptr ? EncodeOrdinary(ordinary, out) : EncodeOrdinaryCached(ordinary, *cached, out);
    };
    std::vector<TokenId> out;
    out.reserve(text.size() / kBytesPerToken);
    const auto encode_between = [&](size_t begin, size_t end) {
      const std::string_view ordinary = text.substr(begin, end - begin);
      if (pre_.marks_spaces && !ordinary.empty()) return encode(MarkSpaces(pre_, ordinary, begin == 0), out);
      if (data_.is_normalized && !IsPlainlyNfc(ordinary)) return encode(ToNfc(ordinary), out);
      encode(ordinary, out);
    };
    size_t begin = 0;
    while (const auto match = added_.Find(text, begin, control)) {
      encode_between(begin, match->begin);
      out.push_back(match->id);
      begin = match->end;
    }
    encode_between(begin, text.size());
    return out;
  }

  // The first place behind `from` where `text` may be cut and each part encoded by itself.
  size_t FindCutOf(std::string_view text, size_t from) const {
    if (!pre_.marks_spaces) return FindCut(text, from);
    return are_words_alone_ ? FindWord(text, from) : text.size();
  }

  void EncodeOrdinaryCached(std::string_view text, const TokenCacheScope& cached,
                            std::vector<TokenId>& out) const {
    const TokenCache::Space space = {cache_owner_, cached.scope};
    while (!text.empty()) {
      const std::string_view stretch = text.substr(0, FindCutOf(text, kStretchBytes));
      text.remove_prefix(stretch.size());
      const bool is_kept = stretch.size() >= kMinStretchBytes && stretch.size() <= kMaxStretchBytes;
      if (is_kept && cached.cache.Append(space, stretch, out)) continue;
      const size_t before = out.size();
      EncodeOrdinary(stretch, out);
      if (is_kept) cached.cache.Put(space, stretch, std::span(out).subspan(before));
    }
  }

  // `text` as its pieces are: normalized, with marks for spaces.
  void EncodeOrdinary(std::string_view text, std::vector<TokenId>& out) const {
    if (pre_.marks_spaces) return EncodeWords(text, out);
    std::vector<TokenId> symbols;
    PieceCache& known = PieceCache::OfThisThread();
    ForEachPiece(pre_, text, [&](std::string_view piece) {
      if (pre_.ignores_merges) {
        const auto whole = whole_pieces_.find(piece);
        if (whole != whole_pieces_.end()) return out.push_back(whole->second);
      }
      if (known.Append(cache_owner_, piece, out)) return;
      symbols.clear();
      for (const char c : piece) {
        const TokenId id = byte_tokens_[static_cast<uint8_t>(c)];
        if (id >= 0) symbols.push_back(id);
      }
      const size_t before = out.size();
      merger_.Apply(symbols, out);
      known.Put(cache_owner_, piece, std::span(out).subspan(before));
    });
  }

  // A piece is all of `text`, but where no merge joins words they may as well be taken one by one.
  void EncodeWords(std::string_view text, std::vector<TokenId>& out) const {
    std::vector<TokenId> symbols;
    PieceCache& known = PieceCache::OfThisThread();
    while (!text.empty()) {
      const bool is_cut = pre_.splits_words || are_words_alone_;
      const std::string_view word =
          is_cut ? text.substr(0, FirstWordLength(text, /*at_each_mark=*/pre_.splits_words)) : text;
      text.remove_prefix(word.size());
      if (known.Append(cache_owner_, word, out)) continue;
      symbols.clear();
      AppendCharacters(word, symbols);
      const size_t before = out.size();
      merger_.Apply(symbols, out);
      known.Put(cache_owner_, word, std::span(out).subspan(before));
    }
  }

  // The tokens of the characters of `text`, of those that have none the tokens of their bytes.
  void AppendCharacters(std::string_view text, std::vector<TokenId>& out) const {
    while (!text.empty()) {
      const Utf8Step step = DecodeUtf8(text);
      const auto found = step.valid ? characters_.find(step.code_point) : characters_.end();
      if (found != characters_.end()) {
        out.push_back(found->second);
      } else {
        for (const char c : text.substr(0, step.length)) out.push_back(byte_tokens_[static_cast<uint8_t>(c)]);
      }
      text.remove_prefix(step.length);
    }
  }

  // What `token`, no added one, stands for.
  std::string BytesOf(std::string_view token) const {
    if (!pre_.marks_spaces) return FromByteAlphabet(token);
    if (const auto byte = ByteOfToken(token)) return std::string(1, static_cast<char>(*byte));
    return UnmarkSpaces(token);
  }

  void IndexCharacters(const TokenIndex& index) {
    byte_tokens_.fill(-1);
    for (const auto& [name, id] : index) {
      const Utf8Step step = DecodeUtf8(name);
      if (step.length != name.size()) continue;
      characters_.try_emplace(step.code_point, id);
      if (name.size() == 1) byte_tokens_[static_cast<uint8_t>(name[0])] = id;
    }
    for (size_t id = 0; id < data_.tokens.size(); ++id) {
      const auto byte = ByteOfToken(data_.tokens[id]);
      if (byte && !is_control_[id] && data_.tokens[id] == ByteToken(*byte))
        byte_tokens_[*byte] = static_cast<TokenId>(id);
    }
    for (const auto& [left, right] : merger_.pairs()) {
      const std::string_view before = data_.tokens[left], after = data_.tokens[right];
      if (after.starts_with(kSpaceMark) && !before.ends_with(kSpaceMark)) are_words_alone_ = false;
    }
  }

  static uint64_t NextCacheOwner() {
    static std::atomic<uint64_t> last = 0;
    return ++last;
  }

  const uint64_t cache_owner_ = NextCacheOwner();
  const BpeData data_;  // canonical: added tokens by id, end tokens sorted; without merges (merger_ has them)
  const BpeMerger merger_;
  const PreTokenizer pre_;
  const AddedTokenFinder added_;  // borrows from data_
  std::vector<std::string> bytes_;
  std::vector<bool> is_control_;
  std::array<TokenId, 256> byte_tokens_;               // -1: no token for this byte
  absl::flat_hash_map<char32_t, TokenId> characters_;  // in the manner of SentencePiece
  bool are_words_alone_ = true;  // and whether no merge joins the first mark of a word to what is before it
  absl::flat_hash_map<std::string_view, TokenId> whole_pieces_;  // empty unless pre_.ignores_merges
};

StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(BpeData data, const MergeSource& merges,
                                                   const BpeKeys& keys) {
  const auto pre = FindPreTokenizer(data.pre);
  if (!pre) {
    return WithReason(DataLoss(keys.pre, ": \"", data.pre, "\" is not supported"),
                      "unsupported_pre_tokenizer");
  }
  if (pre->marks_spaces && data.is_normalized) {
    return WithReason(DataLoss(keys.pre, ": \"", data.pre, "\" is not supported with NFC"),
                      "unsupported_normalizer");
  }
  ASSIGN_OR_RETURN(const TokenIndex index, IndexTokens(data, keys, *pre));
  ASSIGN_OR_RETURN(BpeMerger merger, MakeMerger(data, merges, keys, index));
  data.merges = {};
  data.pre = pre->name;  // not an alias
  if (std::ranges::all_of(data.ties, [](uint32_t count) { return count == 1; })) data.ties = {};
  std::ranges::sort(data.added, {}, &BpeData::AddedToken::id);
  auto& end = data.special.end;
  std::ranges::sort(end);
  end.erase(std::ranges::unique(end).begin(), end.end());
  auto tokenizer = std::make_unique<BpeTokenizer>(std::move(data), index, std::move(merger), *pre);
  if (const auto byte = tokenizer->missing_byte())
    return WithReason(DataLoss(keys.tokens, ": none is \"", ByteToken(*byte), "\""), "vocab_size");
  return tokenizer;
}

StatusOr<SpecialTokens> ParseSpecialTokens(const JsonReader& reader, int64_t token_count) {
  const auto id_of = [&](const JsonReader& from, auto name, int64_t low) {
    return from.Integer(name, low, token_count - 1, "bad_special_id");
  };
  SpecialTokens special;
  ASSIGN_OR_RETURN(special.bos, id_of(reader, "bos", -1));
  ASSIGN_OR_RETURN(special.pad, id_of(reader, "pad", -1));
  ASSIGN_OR_RETURN(special.add_bos, reader.Bool("add_bos"));
  ASSIGN_OR_RETURN(const JsonReader end, reader.Array("end"));
  for (size_t i = 0; i < end.size(); ++i) {
    ASSIGN_OR_RETURN(const int64_t id, id_of(end, i, 0));
    special.end.push_back(static_cast<TokenId>(id));
  }
  return special;
}

StatusOr<std::vector<uint32_t>> ParseTies(const JsonReader& root) {
  std::vector<uint32_t> out;
  ASSIGN_OR_RETURN(const JsonReader ties, root.Array("ties"));
  for (size_t i = 0; i < ties.size(); ++i) {
    ASSIGN_OR_RETURN(const int64_t count, ties.Integer(i, 1, UINT32_MAX, "bad_merge"));
    out.push_back(static_cast<uint32_t>(count));
  }
  return out;
}

StatusOr<std::unique_ptr<Tokenizer>> ParseSerialized(std::string_view serialized) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonData(serialized));
  const JsonReader root(json, "");
  ASSIGN_OR_RETURN(const std::string format, root.Text("format"));
  if (format != kFormat) {
    return WithReason(DataLoss("format: not \"", kFormat, "\""), "unsupported_tokenizer");
  }
  BpeData data;
  ASSIGN_OR_RETURN(data.pre, root.Text("pre"));
  ASSIGN_OR_RETURN(const JsonReader tokens, root.Array("tokens"));
  for (size_t id = 0; id < tokens.size(); ++id) {
    ASSIGN_OR_RETURN(std::string token, tokens.Text(id));
    data.tokens.push_back(std::move(token));
  }
  const auto count = static_cast<int64_t>(data.tokens.size());
  ASSIGN_OR_RETURN(const JsonReader merges, root.Array("merges"));
  if (merges.size() % 2 != 0)
    return WithReason(DataLoss("merges: ", merges.size(), " ids, not pairs"), "bad_merge");
  std::vector<int64_t> merge_ids;
  for (size_t i = 0; i < merges.size(); ++i) {
    ASSIGN_OR_RETURN(const int64_t id, merges.Integer(i, 0, count - 1, "bad_merge"));
    merge_ids.push_back(id);
  }
  if (root.Has("ties")) {
    ASSIGN_OR_RETURN(data.ties, ParseTies(root));
  }
  if (root.Has("nfc")) {
    ASSIGN_OR_RETURN(data.is_normalized, root.Bool("nfc"));
  }
  ASSIGN_OR_RETURN(const JsonReader added, root.Array("added"));
  for (size_t i = 0; i < added.size(); ++i) {
    ASSIGN_OR_RETURN(const JsonReader entry, added.Array(i));
    ASSIGN_OR_RETURN(const int64_t id, entry.Integer(size_t{0}, 0, count - 1, "bad_added_token"));
    ASSIGN_OR_RETURN(const bool is_control, entry.Bool(size_t{1}));
    if (data.tokens[id].size() > kMaxAddedTokenBytes) {  // before it is copied, perhaps a million times
      return WithReason(
          DataLoss(entry.key(), ": token ", id, " is longer than ", kMaxAddedTokenBytes, " bytes"),
          "bad_added_token");
    }
    data.added.push_back({static_cast<TokenId>(id), data.tokens[id], is_control});
  }
  ASSIGN_OR_RETURN(const JsonReader special, root.Object("special"));
  ASSIGN_OR_RETURN(data.special, ParseSpecialTokens(special, count));
  const auto pre = FindPreTokenizer(data.pre);
  const bool has_names = pre && pre->marks_spaces;
  const auto name_of = [&](const BpeData& from, size_t i) -> std::string_view {
    const std::string& token = from.tokens[merge_ids[i]];
    return has_names ? NameInMerges(token) : token;
  };
  const MergeSource source = {merge_ids.size() / 2, [&name_of](const BpeData& from, size_t rank) {
                                return std::pair(name_of(from, 2 * rank), name_of(from, 2 * rank + 1));
                              }};
  return MakeTokenizer(std::move(data), source, {});
}

}  // namespace

StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(BpeData data, const BpeKeys& keys) {
  const MergeSource merges = {data.merges.size(), [](const BpeData& from, size_t rank) {
                                return std::pair<std::string_view, std::string_view>(
                                    from.merges[rank].first, from.merges[rank].second);
                              }};
  return MakeTokenizer(std::move(data), merges, keys);
}

StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizer(std::string_view serialized) {
  auto tokenizer = ParseSerialized(serialized);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), "serialized tokenizer");
  return tokenizer;
}

}  // namespace terrace
