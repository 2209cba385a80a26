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
  virtual const SpecialTokens& special() const = 0;
  // All that is needed to make the same tokenizer elsewhere (ParseTokenizer), in a canonical form: two files
  // that describe the same tokenizer serialize alike.
  virtual std::string Serialize() const = 0;

  // Bytes of all tokens, control tokens left out; not necessarily valid UTF-8 (see detokenizer.h).
  std::string Decode(std::span<const TokenId> tokens) const;
};

// What a byte-level BPE tokenizer is made of, whichever file it was read from.
struct BpeData {
  std::vector<std::string> tokens;                          // by id, in the byte-level alphabet (GPT-2's)
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  struct AddedToken {
    TokenId id = 0;
    std::string content;  // raw UTF-8
    bool is_control = true;
  };
  std::vector<AddedToken> added;
  // Pre-tokenization: "gpt2", "smollm" (single digits, then gpt2), "llama-bpe", ...; see pre_tokenizer.h.
  std::string pre = "gpt2";
  SpecialTokens special;
};

// What the parts of BpeData are called in the file they come from, for error messages: "`merges`[17]: ...".
struct BpeKeys {
  std::string tokens = "tokens", merges = "merges", added = "added", pre = "pre", special = "special";
};

// Limits: 2^20 tokens, 2^22 merges, 64 KiB a token, 1 KiB an added token. Checks every id, merge and special
// token. DATA_LOSS with reasons vocab_size, bad_merge, bad_special_id, bad_added_token,
// unsupported_pre_tokenizer. `tokens` of an added token is its content. A byte that no token stands for is
// left out of encodings; vocabularies normally have all 256.
StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(BpeData data, const BpeKeys& keys = {});

// The inverse of Tokenizer::Serialize, with the same checks as MakeBpeTokenizer. The format is compact JSON
// with sorted keys:
//   {"added": [[id, is_control], ...],           by id; their content is in tokens
//    "format": "terrace-bpe-1",
//    "merges": [left id, right id, ...],         two for each merge, by rank
//    "pre": "smollm",
//    "special": {"add_bos": bool, "bos": id, "end": [id, ...], "pad": id},    end sorted
//    "tokens": ["...", ...]}                     by id
StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizer(std::string_view serialized);

// Reads `directory`/tokenizer.json (and tokenizer_config.json, generation_config.json for the special
// tokens). DATA_LOSS names file, key and reason (as above, and json_limit, invalid_json, duplicate_key,
// type_mismatch, unsupported_tokenizer, unsupported_normalizer); NOT_FOUND when tokenizer.json is absent. A
// normalizer of type NFC is accepted and not applied: text is encoded as it stands, without loss.
StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(const std::string& directory);

}  // namespace terrace
