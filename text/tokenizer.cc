#include "text/tokenizer.h"

#include "text/token_cache.h"

namespace terrace {

std::vector<TokenId> Tokenizer::EncodeCached(std::string_view text, const std::vector<ByteRange>& control,
                                             const TokenCacheScope&) const {
  return control.empty() ? Encode(text) : Encode(MarkedText{std::string(text), control});
}

std::string Tokenizer::Decode(std::span<const TokenId> tokens) const {
  std::string out;
  for (const TokenId token : tokens) out.append(TokenBytes(token));
  return out;
}

}  // namespace terrace
