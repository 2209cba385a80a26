#include "router/dispatch/draft.h"

#include <algorithm>
#include <string_view>

namespace terrace {

std::vector<TokenId> EncodeDraft(const Draft& draft, const TierView& tier) {
  if (draft.tokens.empty()) return {};
  std::vector<TokenId> tokens = draft.tokens;
  if (draft.text_digest != tier.text_digest) {
    const std::string text = draft.text->tokenizer->Decode(draft.tokens);
    tokens = tier.text->tokenizer->Encode(std::string_view(text));
  }
  // Models of one tokenizer may have vocabularies of several sizes.
  const auto unknown = std::ranges::find_if(
      tokens, [&](TokenId token) { return static_cast<uint32_t>(token) >= tier.vocab_size; });
  tokens.erase(unknown, tokens.end());
  return tokens;
}

}  // namespace terrace
