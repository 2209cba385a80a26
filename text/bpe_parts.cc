#include "text/bpe_parts.h"

#include <numeric>
#include <vector>

#include "text/sentencepiece.h"
#include "text/unicode.h"

namespace terrace {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 20, kMaxMerges = size_t{1} << 22;
constexpr size_t kMaxTokenBytes = size_t{64} << 10;

std::string Element(const std::string& key, size_t index) { return Concat(key, "[", index, "]"); }

// The ids of all tokens by their text; an error for tokens that break a limit or occur twice.
StatusOr<TokenIndex> IndexByText(const BpeData& data, const BpeKeys& keys) {
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

// Takes what merges cannot name out of `index`, so that none can make a control token; and of tokens in the
// manner of SentencePiece adds the characters that are tokens by their bytes alone.
void KeepNames(const BpeData& data, const PreTokenizer& pre, TokenIndex& index) {
  for (const auto& added : data.added) {
    if (added.is_control) index.erase(added.content);
  }
  if (!pre.marks_spaces) return;
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const std::string& token = data.tokens[id];
    const auto byte = ByteOfToken(token);
    if (!byte || index.erase(token) == 0 || *byte >= 0x80 || token != ByteToken(*byte)) continue;
    index.try_emplace(std::string(NameInMerges(token)), static_cast<TokenId>(id));
  }
}

Status CheckTies(const BpeData& data, size_t merges, const BpeKeys& keys) {
  const auto error = [&](const auto&... text) { return WithReason(DataLoss(text...), "bad_merge"); };
  uint64_t sum = 0;
  for (size_t i = 0; i < data.ties.size(); ++i) {
    if (data.ties[i] == 0) return error(Element(keys.ties, i), ": 0 merges of a rank");
    sum += data.ties[i];
  }
  if (data.ties.empty() || sum == merges) return Status();
  return error(keys.ties, ": ", sum, " merges, there are ", merges);
}

}  // namespace

StatusOr<TokenIndex> IndexTokens(const BpeData& data, const BpeKeys& keys, const PreTokenizer& pre) {
  ASSIGN_OR_RETURN(TokenIndex index, IndexByText(data, keys));
  RETURN_IF_ERROR(CheckAddedTokens(data, keys));
  RETURN_IF_ERROR(CheckSpecialTokens(data, keys));
  KeepNames(data, pre, index);
  return index;
}

StatusOr<BpeMerger> MakeMerger(const BpeData& data, const MergeSource& merges, const BpeKeys& keys,
                               const TokenIndex& index) {
  const auto error = [&](const auto&... text) { return WithReason(DataLoss(text...), "bad_merge"); };
  if (merges.count > kMaxMerges) return error(keys.merges, ": ", merges.count, " merges, limit ", kMaxMerges);
  RETURN_IF_ERROR(CheckTies(data, merges.count, keys));
  BpeMerger merger;
  uint32_t rank = 0, of_rank = 0;  // merges so far that have it
  for (size_t i = 0; i < merges.count; ++i) {
    const auto [left, right] = merges.pair(data, i);
    const std::string names[3] = {std::string(left), std::string(right), Concat(left, right)};
    TokenId ids[3];
    for (int n = 0; n < 3; ++n) {
      const auto found = index.find(names[n]);
      if (found == index.end()) {
        return error(Element(keys.merges, i), ": \"", names[n].substr(0, 80), "\" is not an ordinary token");
      }
      ids[n] = found->second;
    }
    if (!merger.Add(ids[0], ids[1], ids[2], rank)) {
      return error(Element(keys.merges, i), ": the pair \"", left, " ", right, "\" occurs twice");
    }
    if (++of_rank < (data.ties.empty() ? 1 : data.ties[rank])) continue;
    ++rank;
    of_rank = 0;
  }
  return merger;
}

}  // namespace terrace
