// A request's input as one tier's tokens. Pure.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "router/cluster/cluster_view.h"
#include "router/request/request.h"

namespace terrace {

using PromptPtr = std::shared_ptr<const std::vector<TokenId>>;

// A request's, in the tokens of one tokenizer.
struct EncodedPrompt {
  std::string text_digest = {};
  PromptPtr prompt = {};
};

// INVALID_ARGUMENT when the request names a token id that the tier's model does not have.
Status CheckTokenIds(const Request& request, const TierView& tier);

// Template and tokenizer of the tier, whose `text` is known. INVALID_ARGUMENT as CheckTokenIds, for tools
// that the template does not know and for what it refuses. Tokens that the client wrote are not copied: they
// keep their request.
StatusOr<PromptPtr> EncodeInput(const RequestPtr& request, const TierView& tier);

// What an answer begins with when the request asks for an echo, else "": the prompt as it was written, or the
// text of its tokens, control tokens written out.
std::string EchoText(const Request& request, const std::vector<TokenId>& prompt, const Tokenizer& tokenizer);

// INVALID_ARGUMENT (context_length_exceeded) when prompt and max_tokens do not fit in the tier's context
// together.
Status CheckContext(const Request& request, size_t prompt_tokens, const TierView& tier);

}  // namespace terrace
