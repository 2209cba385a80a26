// Byte-level byte-pair encoding (GPT-2's): added tokens are cut out first, the rest is cut into pieces by the
// pre-tokenizer, and the bytes of each piece are joined by the merges.
#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <optional>
#include <span>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/json.h"
#include "text/added_tokens.h"
#include "text/bpe_merger.h"
#include "text/byte_alphabet.h"
#include "text/json_fields.h"
#include "text/piece_cache.h"
#include "text/pre_tokenizer.h"
#include "text/token_cache.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace terrace {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 20, kMaxMerges = size_t{1} << 22;
constexpr size_t kMaxTokenBytes = size_t{64} << 10, kMaxAddedTokenBytes = 1024;
// What a cache of tokens takes: the first place for a cut behind so many bytes ends a stretch; one that is
// shorter, at a text's end, costs no more than looking it up, and one that is longer is no text.
constexpr size_t kStretchBytes = 1024, kMinStretchBytes = 64, kMaxStretchBytes = 8192;
constexpr size_t kBytesPerToken = 4;  // of most text
constexpr std::string_view kFormat = "terrace-bpe-1";

using TokenIndex = absl::flat_hash_map<std::string, TokenId>;  // content to id

std::string Element(const std::string& key, size_t index) { return Concat(key, "[", index, "]"); }

// The ids of all tokens by their text; an error for tokens that break a limit or occur twice.
StatusOr<TokenIndex> IndexTokens(const BpeData& data, const BpeKeys& keys) {
  const auto error = [&](const auto&... text) { return WithReason(DataLoss(text...), "vocab_size"); };
  if (data.tokens.empty() || data.tokens.size() > kMaxTokens) {
    return error(keys.tokens, ": ", data.tokens.size(), " tokens, limits 1 and ", kMaxTokens);
  }
  TokenIndex index;
  index.reserve(data.tokens.size());
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const std::string& token = data.tokens[id];
    if (token.empty() || token.size() > kMaxTokenBytes) {
      return error(Element(keys.tokens, id), ": ", token.size(), " bytes, limits 1 and ", kMaxTokenBytes);
    }
    if (!IsValidUtf8(token)) return error(Element(keys.tokens, id), ": not UTF-8");
    const auto [entry, is_new] = index.try_emplace(token, static_cast<TokenId>(id));
    if (!is_new) return error(Element(keys.tokens, id), ": the same text as token ", entry->second);
  }
  return index;
}

Status CheckAddedTokens(const BpeData& data, const BpeKeys& keys) {
  const auto error = [&](const auto&... text) { return WithReason(DataLoss(text...), "bad_added_token"); };
  std::vector<bool> seen(data.tokens.size());
  for (size_t i = 0; i < data.added.size(); ++i) {
    const auto& [id, content, is_control] = data.added[i];
    const std::string key = Element(keys.added, i);
    if (id < 0 || static_cast<size_t>(id) >= data.tokens.size()) {
      return error(key, ": id ", id, " is not below the ", data.tokens.size(), " tokens");
    }
    if (content.empty() || content.size() > kMaxAddedTokenBytes) {
      return error(key, ": ", content.size(), " bytes, limits 1 and ", kMaxAddedTokenBytes);
    }
    if (data.tokens[id] != content) return error(key, ": token ", id, " has another text");
    if (seen[id]) return error(key, ": id ", id, " occurs twice");
    seen[id] = true;
  }
  return Status();
}

Status CheckSpecialTokens(const BpeData& data, const BpeKeys& keys) {
  const auto check = [&](std::string_view name, TokenId id) {
    if (id >= 0 && static_cast<size_t>(id) < data.tokens.size()) return Status();
    return WithReason(DataLoss(keys.special, ".", name, ": id ", id, " of ", data.tokens.size(), " tokens"),
                      "bad_special_id");
  };
  const SpecialTokens& special = data.special;
  if (special.bos != -1 || special.add_bos) RETURN_IF_ERROR(check("bos", special.bos));
  if (special.pad != -1) RETURN_IF_ERROR(check("pad", special.pad));
  for (const TokenId id : special.end) RETURN_IF_ERROR(check("end", id));
  return Status();
}

// The merges as their source has them; `pair` gives views that live as long as the BpeData.
struct MergeSource {
  size_t count;
  std::function<std::pair<std::string_view, std::string_view>(const BpeData& data, size_t rank)> pair;
};

// `index` no longer holds control tokens, so no merge can make one.
StatusOr<BpeMerger> MakeMerger(const BpeData& data, const MergeSource& merges, const BpeKeys& keys,
                               const TokenIndex& index) {
  const auto error = [&](const auto&... text) { return WithReason(DataLoss(text...), "bad_merge"); };
  if (merges.count > kMaxMerges) return error(keys.merges, ": ", merges.count, " merges, limit ", kMaxMerges);
  BpeMerger merger;
  for (size_t rank = 0; rank < merges.count; ++rank) {
    const auto [left, right] = merges.pair(data, rank);
    const std::string names[3] = {std::string(left), std::string(right), Concat(left, right)};
    TokenId ids[3];
    for (int i = 0; i < 3; ++i) {
      const auto found = index.find(names[i]);
      if (found == index.end()) {
        return error(Element(keys.merges, rank), ": \"", names[i].substr(0, 80),
                     "\" is not an ordinary token");
      }
      ids[i] = found->second;
    }
    if (!merger.Add(ids[0], ids[1], ids[2])) {
      return error(Element(keys.merges, rank), ": the pair \"", left, " ", right, "\" occurs twice");
    }
  }
  return merger;
}

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
  // What MakeBpeTokenizer has checked: `index` holds the ordinary tokens, that is all but control tokens.
  BpeTokenizer(BpeData data, const TokenIndex& index, BpeMerger merger, const PreTokenizer& pre)
      : data_(std::move(data)), merger_(std::move(merger)), pre_(pre), added_(data_.added) {
    for (const std::string& token : data_.tokens) bytes_.push_back(FromByteAlphabet(token));
    is_control_.resize(data_.tokens.size());
    for (const auto& added : data_.added) {
      bytes_[added.id] = added.content;
      is_control_[added.id] = added.is_control;
    }
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = index.find(ToByteAlphabet(std::string(1, static_cast<char>(byte))));
      byte_tokens_[byte] = found == index.end() ? -1 : found->second;
    }
    if (!pre_.ignores_merges) return;
    for (const auto& [token, id] : index) whole_pieces_.try_emplace(bytes_[id], id);
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
  const SpecialTokens& special() const override { return data_.special; }

  std::string Serialize() const override {
    Json merges = Json::array(), added = Json::array();
    for (const auto& [left, right] : merger_.pairs()) {
      merges.push_back(left);
      merges.push_back(right);
    }
    for (const auto& token : data_.added) added.push_back(Json::array({token.id, token.is_control}));
    const SpecialTokens& special = data_.special;
    return ToJsonText(
        {{"format", kFormat},
         {"pre", pre_.name},
         {"tokens", data_.tokens},
         {"merges", std::move(merges)},
         {"added", std::move(added)},
         {"special",
          {{"bos", special.bos}, {"end", special.end}, {"pad", special.pad}, {"add_bos", special.add_bos}}}});
  }

 private:
  bool Contains(TokenId token) const { return token >= 0 && static_cast<size_t>(token) < bytes_.size(); }

  // `cached`: may be null.
  std::vector<TokenId> EncodeWithControl(std::string_view text, std::span<const ByteRange> control,
                                         const TokenCacheScope* cached = nullptr) const {
    CHECK(text.size() < size_t{1} << 31, "text of ", text.size(), " bytes");
    const auto encode = [&](std::string_view ordinary, std::vector<TokenId>& out) {
      return cached == nullptr ? EncodeOrdinary(ordinary, out) : EncodeOrdinaryCached(ordinary, *cached, out);
    };
    std::vector<TokenId> out;
    out.reserve(text.size() / kBytesPerToken);
    size_t begin = 0;
    while (const auto match = added_.Find(text, begin, control)) {
      encode(text.substr(begin, match->begin - begin), out);
      out.push_back(match->id);
      begin = match->end;
    }
    encode(text.substr(begin), out);
    return out;
  }

  void EncodeOrdinaryCached(std::string_view text, const TokenCacheScope& cached,
                            std::vector<TokenId>& out) const {
    const TokenCache::Space space = {cache_owner_, cached.scope};
    while (!text.empty()) {
      const std::string_view stretch = text.substr(0, FindCut(text, kStretchBytes));
      text.remove_prefix(stretch.size());
      const bool is_kept = stretch.size() >= kMinStretchBytes && stretch.size() <= kMaxStretchBytes;
      if (is_kept && cached.cache.Append(space, stretch, out)) continue;
      const size_t before = out.size();
      EncodeOrdinary(stretch, out);
      if (is_kept) cached.cache.Put(space, stretch, std::span(out).subspan(before));
    }
  }

  void EncodeOrdinary(std::string_view text, std::vector<TokenId>& out) const {
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
  std::array<TokenId, 256> byte_tokens_;                         // -1: no token for this byte
  absl::flat_hash_map<std::string_view, TokenId> whole_pieces_;  // empty unless pre_.ignores_merges
};

StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(BpeData data, const MergeSource& merges,
                                                   const BpeKeys& keys) {
  const auto pre = FindPreTokenizer(data.pre);
  if (!pre) {
    return WithReason(DataLoss(keys.pre, ": \"", data.pre, "\" is not supported"),
                      "unsupported_pre_tokenizer");
  }
  ASSIGN_OR_RETURN(TokenIndex index, IndexTokens(data, keys));
  RETURN_IF_ERROR(CheckAddedTokens(data, keys));
  RETURN_IF_ERROR(CheckSpecialTokens(data, keys));
  for (const auto& added : data.added) {
    if (added.is_control) index.erase(added.content);
  }
  ASSIGN_OR_RETURN(BpeMerger merger, MakeMerger(data, merges, keys, index));
  data.merges = {};
  data.pre = pre->name;  // not an alias
  std::ranges::sort(data.added, {}, &BpeData::AddedToken::id);
  auto& end = data.special.end;
  std::ranges::sort(end);
  end.erase(std::ranges::unique(end).begin(), end.end());
  return std::make_unique<BpeTokenizer>(std::move(data), index, std::move(merger), *pre);
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
  const MergeSource source = {merge_ids.size() / 2, [&merge_ids](const BpeData& from, size_t rank) {
                                return std::pair<std::string_view, std::string_view>(
                                    from.tokens[merge_ids[2 * rank]], from.tokens[merge_ids[2 * rank + 1]]);
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
