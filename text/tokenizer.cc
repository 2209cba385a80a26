#include "text/tokenizer.h"

namespace terrace {

std::string Tokenizer::Decode(std::span<const TokenId> tokens) const {
  std::string out;
  for (const TokenId token : tokens) out.append(TokenBytes(token));
  return out;
}

}  // namespace terrace
