// POST /tokenize and /detokenize, in the shape that vLLM gives them: JSON text -> RequestFields, and replies.
// Pure.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "base/status.h"
#include "router/dispatch/dispatcher.h"
#include "router/request/request.h"

namespace terrace {

struct TokenizeFields {
  RequestFields fields;  // without request id and times
  bool return_token_strs = false;
};

// {"model", "prompt"} or {"model", "messages", "add_generation_prompt", "tools"}, and "return_token_strs".
StatusOr<TokenizeFields> ParseTokenize(std::string_view body);
// {"model", "tokens"}
StatusOr<RequestFields> ParseDetokenize(std::string_view body);

// {"count", "max_model_len", "tokens", "token_strs"}; the last is null unless asked for.
Json TokenizeJson(const TokenizedInput& input, bool with_strings);

}  // namespace terrace
