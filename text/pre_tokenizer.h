// Pre-tokenization: cutting text into the pieces inside which byte-pair merges may happen. Hand-written
// matchers for the regular expressions that models ship, linear in the length of the text whatever the text
// is. Pure, thread-safe. Bytes that are not UTF-8 count as punctuation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace terrace {

// The names are those of GGUF's tokenizer.ggml.pre.
//   gpt2       's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   smollm     every \p{N} is a piece; what lies between them is cut as by gpt2
//   llama-bpe  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*
//              |\s*[\r\n]+|\s+(?!\S)|\s+       and a piece that is a token stays whole
//   dbrx       as llama-bpe, with merges only
//   qwen2      as dbrx with \p{N} in place of \p{N}{1,3}
//
// Tokenizers in the manner of SentencePiece (sentencepiece.h) have names of Terrace's own. Spaces are written
// as U+2581, and the names say where one more is put in front:
//   spm         of all text between two added tokens (Llama 2, Mistral, TinyLlama; GGUF's add_space_prefix)
//   spm-always  of such text that does not begin with one
//   spm-first   of the whole text, if it does not begin with one
//   spm-none    nowhere (Gemma)
// All text between two added tokens is one piece; with "-words" behind all names but the first, each U+2581
// begins a new one.
enum class SpacePrefix : uint8_t { kNone, kFirst, kMissing, kAlways };

struct PreTokenizer {
  std::string_view name;
  bool splits_digits_first = false;  // smollm
  bool is_llama_style = false;       // the second expression
  size_t number_length = 0;          // longest \p{N} piece; 0: no limit
  bool ignores_merges = false;
  bool marks_spaces = false;  // spm; the functions below are about the others
  SpacePrefix prefix = SpacePrefix::kNone;
  bool splits_words = false;  // spm-...-words
};

// By name or alias ("gpt-2", "llama3", "llama-v3"); nothing for a name that is not known.
std::optional<PreTokenizer> FindPreTokenizer(std::string_view name);

// Calls `take(std::string_view piece)` for each piece of `text`, in order; the pieces joined are `text`.
template <typename Take>
void ForEachPiece(const PreTokenizer& kind, std::string_view text, Take take);

// The first place behind `from` where `text` may be cut, whatever the kind: the pieces of both parts, each
// taken by itself, are those of the whole. It is behind a letter and before what is none. text.size() when
// there is none.
size_t FindCut(std::string_view text, size_t from);

// Length in bytes of the first piece of `text` (not empty), smollm's digits apart.
size_t FirstPieceLength(const PreTokenizer& kind, std::string_view text);
// Bytes before the first \p{N} of `text`; all of it when there is none.
size_t LengthBeforeNumber(std::string_view text);
// Bytes of the first character of `text` (not empty).
size_t FirstCharacterLength(std::string_view text);

template <typename Take>
void ForEachPiece(const PreTokenizer& kind, std::string_view text, Take take) {
  while (!text.empty()) {
    const size_t end = kind.splits_digits_first ? LengthBeforeNumber(text) : text.size();
    for (std::string_view rest = text.substr(0, end); !rest.empty();) {
      const size_t length = FirstPieceLength(kind, rest);
      take(rest.substr(0, length));
      rest.remove_prefix(length);
    }
    text.remove_prefix(end);
    if (text.empty()) return;
    const size_t digit = FirstCharacterLength(text);
    take(text.substr(0, digit));
    text.remove_prefix(digit);
  }
}

}  // namespace terrace
