// OpenAI's requests for chat completions and completions: JSON text -> RequestFields. Ranges are checked
// later, in Request::Make; here it is types and what Terrace does not do: a field that is known but
// unsupported is an error, an unknown one is ignored. Pure.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "router/request/request.h"

namespace terrace {

struct OpenAiRequest {
  RequestFields fields;                         // without request id and times
  std::vector<RequestInput> more_prompts = {};  // of a completion, behind the one in `fields`
  bool include_usage = false;
};

// INVALID_ARGUMENT with reason and parameter.
StatusOr<OpenAiRequest> ParseOpenAiChat(std::string_view body);
StatusOr<OpenAiRequest> ParseOpenAiCompletion(std::string_view body);

// A number of seconds above 0, from the header x-request-timeout-seconds.
StatusOr<double> ParseTimeoutHeader(std::string_view value);
// A number, from the header `name`.
StatusOr<double> ParseNumberHeader(std::string_view name, std::string_view value);
// A whole number, from the header x-terrace-speculation-max-tokens.
StatusOr<int64_t> ParseSpeculationHeader(std::string_view value);

}  // namespace terrace
