// Text <-> token ids. A Tokenizer is immutable after its factory returned: any thread may call it, and router
// and worker that hold the same one (same digest) agree on every token.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace terrace {

using TokenId = int32_t;

// Half-open byte range [begin, end) of a text.
struct ByteRange {
  size_t begin = 0, end = 0;
};

// Text of which only some parts may be read as control tokens: "<|user|>" inside a user's message is plain
// text, the same bytes written by the chat template are token 2. A control token is recognised only where all
// of its bytes lie in `control` (sorted, disjoint ranges; adjacent ranges count as one).
struct MarkedText {
  std::string text;
  std::vector<ByteRange> control;
};

struct SpecialTokens {
  TokenId bos = -1;          // -1: none
  std::vector<TokenId> end;  // any of these ends an answer (eos, end of turn)
  TokenId pad = -1;
  bool add_bos = false;  // plain completion prompts start with bos
};

struct TokenCacheScope;

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Token ids of `text`; control tokens are never produced. Any bytes are accepted.
  virtual std::vector<TokenId> Encode(std::string_view text) const = 0;
  // The same, with control tokens recognised inside `text.control`.
  virtual std::vector<TokenId> Encode(const MarkedText& text) const = 0;
  // The same tokens: the longer stretches of the text are looked up in a cache, and left there. By default
  // none are.
  virtual std::vector<TokenId> EncodeCached(std::string_view text, const std::vector<ByteRange>& control,
                                            const TokenCacheScope& cached) const;
  // The bytes a token stands for; empty for control tokens unless `with_control`, and for ids outside
  // [0, vocab_size): the output layer of a model may be padded past its vocabulary.
  virtual std::string_view TokenBytes(TokenId token, bool with_control = false) const = 0;
  virtual bool IsControl(TokenId token) const = 0;  // false for ids outside [0, vocab_size)
  virtual size_t vocab_size() const = 0;
  // Whether Encode puts a space in front that the text has not, so that what is decoded from a text's first
  // token on loses one (PromptText does that). An answer goes on from its prompt and keeps the space.
  virtual bool adds_space() const { return false; }
  virtual const SpecialTokens& special() const = 0;
  // All that is needed to make the same tokenizer elsewhere (ParseTokenizer), in a canonical form: two files
  // that describe the same tokenizer serialize alike.
  virtual std::string Serialize() const = 0;

  // Bytes of all tokens, control tokens left out; not necessarily valid UTF-8 (see detokenizer.h), and with
  // the space in front that adds_space() is about.
  std::string Decode(std::span<const TokenId> tokens) const;
};

// What a BPE tokenizer is made of, whichever file it was read from: a byte-level one, or one in the manner of
// SentencePiece ("spm" of `pre`; see sentencepiece.h).
struct BpeData {
  std::vector<std::string> tokens;  // by id: in the byte-level alphabet (GPT-2's); or with U+2581 for spaces
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  // How many merges, in order, share a rank: of those the leftmost in the text goes first. Empty: none do.
  std::vector<uint32_t> ties;
  struct AddedToken {
    TokenId id = 0;
    std::string content;  // raw UTF-8
    bool is_control = true;
  };
  std::vector<AddedToken> added;
  // Pre-tokenization: "gpt2", "smollm" (single digits, then gpt2), "llama-bpe", ...; see pre_tokenizer.h.
  std::string pre = "gpt2";
  bool is_normalized = false;  // text is brought to Unicode's NFC first; byte-level only
  SpecialTokens special;
};

// What the parts of BpeData are called in the file they come from, for error messages: "`merges`[17]: ...".
struct BpeKeys {
  std::string tokens = "tokens", merges = "merges", ties = "ties", added = "added", pre = "pre",
              special = "special";
};

// Limits: 2^20 tokens, 2^22 merges, 64 KiB a token, 1 KiB an added token. Checks every id, merge and special
// token. DATA_LOSS with reasons vocab_size, bad_merge, bad_special_id, bad_added_token,
// unsupported_pre_tokenizer, unsupported_normalizer. `tokens` of an added token is its content. A byte that
// no byte-level token stands for is left out of encodings; vocabularies normally have all 256. Of the others
// each must: "<0x41>" (or, below 128, the character) stands for what has no token.
StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(BpeData data, const BpeKeys& keys = {});

// The inverse of Tokenizer::Serialize, with the same checks as MakeBpeTokenizer. The format is compact JSON
// with sorted keys:
//   {"added": [[id, is_control], ...],           by id; their content is in tokens
//    "format": "terrace-bpe-1",
//    "merges": [left id, right id, ...],         two for each merge, by rank
//    "nfc": true,                                only if it is
//    "pre": "smollm",
//    "special": {"add_bos": bool, "bos": id, "end": [id, ...], "pad": id},    end sorted
//    "ties": [count, ...],                       only if some are not 1
//    "tokens": ["...", ...]}                     by id
StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizer(std::string_view serialized);

// Reads `directory`/tokenizer.json (and tokenizer_config.json, generation_config.json for the special
// tokens), and does as Hugging Face's tokenizers do with it. DATA_LOSS names file, key and reason (as above,
// and json_limit, invalid_json, duplicate_key, type_mismatch, unsupported_tokenizer); NOT_FOUND when
// tokenizer.json is absent. model.merge_ties, which others do not look at, is BpeData::ties.
StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(const std::string& directory);

}  // namespace terrace
