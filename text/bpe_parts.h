// The parts of a BpeData, checked, and made into what a tokenizer works with. Pure functions.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "text/bpe_merger.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"

namespace terrace {

inline constexpr size_t kMaxAddedTokenBytes = 1024;

using TokenIndex = absl::flat_hash_map<std::string, TokenId>;  // name to id

// The tokens that merges may name, all checks of MakeBpeTokenizer but those of merges done: all but control
// tokens, and in the manner of SentencePiece (`pre`) by NameInMerges.
StatusOr<TokenIndex> IndexTokens(const BpeData& data, const BpeKeys& keys, const PreTokenizer& pre);

// The merges as their source has them; `pair` gives names that live as long as the BpeData.
struct MergeSource {
  size_t count;
  std::function<std::pair<std::string_view, std::string_view>(const BpeData& data, size_t rank)> pair;
};
StatusOr<BpeMerger> MakeMerger(const BpeData& data, const MergeSource& merges, const BpeKeys& keys,
                               const TokenIndex& index);

}  // namespace terrace
