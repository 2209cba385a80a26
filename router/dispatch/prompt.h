// A request's input as one tier's tokens. Pure.
#pragma once

#include <memory>
#include <vector>

#include "base/status.h"
#include "router/cluster/cluster_view.h"
#include "router/request/request.h"

namespace terrace {

using PromptPtr = std::shared_ptr<const std::vector<TokenId>>;

// Template and tokenizer of the tier, whose `text` is known. INVALID_ARGUMENT for token ids that do not exist
// there and for what the template refuses.
StatusOr<PromptPtr> EncodeInput(const Request& request, const TierView& tier);

// INVALID_ARGUMENT (context_length_exceeded) when prompt and max_tokens do not fit in the tier's context
// together.
Status CheckContext(const Request& request, size_t prompt_tokens, const TierView& tier);

}  // namespace terrace
