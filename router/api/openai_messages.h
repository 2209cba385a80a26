// The conversation and the tools of a request in OpenAI's JSON. Ranges are checked later, in Request::Make.
// Pure.
#pragma once

#include <string_view>
#include <vector>

#include "router/api/openai_fields.h"
#include "router/request/request.h"

namespace terrace {

StatusOr<std::vector<ChatMessage>> ParseMessages(const Fields& request);

// `tools`, `tool_choice` and `parallel_tool_calls`. What only constrained decoding could promise is
// unsupported: a choice other than "none" and "auto", and strict functions. `body` is the request's text,
// which has the order of a schema's members.
Status ParseTools(const Fields& request, std::string_view body, RequestFields& out);

}  // namespace terrace
