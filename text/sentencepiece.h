// What tokenizers in the manner of SentencePiece have that byte-level ones have not: spaces written as marks
// (U+2581), tokens of single bytes ("<0x0A>"), and scores in place of merges. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"

namespace terrace {

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

// `text`, which stands between two added tokens and is not empty, as tokens write it: with marks for spaces
// and, where `kind` wants it, one more in front. `is_first`: nothing stands before it.
std::string MarkSpaces(const PreTokenizer& kind, std::string_view text, bool is_first);
// `token` with spaces for its marks.
std::string UnmarkSpaces(std::string_view token);

// The length of the first word of `text` (not empty): it ends before the first mark that stands behind
// anything else, or with `at_each_mark` behind anything at all.
size_t FirstWordLength(std::string_view text, bool at_each_mark);
// The first place behind `from` where a word begins that FirstWordLength (not at each mark) finds;
// text.size() when there is none.
size_t FindWord(std::string_view text, size_t from);

// "<0x0A>" for 10.
std::string ByteToken(uint8_t byte);
// The byte that `token` stands for; nothing for any other token. Digits of either case.
std::optional<uint8_t> ByteOfToken(std::string_view token);

// What `token` is called in merges: its text, but "\t" for "<0x09>". A character of one byte may lack a token
// of its own and be merged nevertheless, as in Gemma's vocabulary; it is then the token of its byte.
std::string_view NameInMerges(std::string_view token);

// Fills in merges and ties: any two tokens that are a third one joined merge to it, that of the best score
// first (of equal ones the leftmost). Control tokens and tokens of bytes are not merged to. `scores` has one
// for each token. DATA_LOSS, reason vocab_size, where tokens are too long for that, or a character in them is
// no token; bad_merge for too many. `key` is that of the tokens.
Status SetMergesOfScores(std::span<const float> scores, const std::string& key, BpeData& data);

}  // namespace terrace
