// Requests as they were recorded: a JSON object a line,
//
//   {"arrival": 0.25, "prompt_tokens": 900, "output_tokens": 64, "prefix": "agent", "prefix_tokens": 600}
//
// in the order of their arrival, in seconds from any moment. Requests with one prefix begin with the same
// tokens, as many in each; without "prefix" and "prefix_tokens" a prompt shares nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace terrace {

struct TracedRequest {
  double arrival_seconds = 0;  // from the first request's
  uint32_t prompt_tokens = 1;  // the prefix's included
  uint32_t output_tokens = 1;
  std::string prefix = {};     // its name
  uint32_t prefix_tokens = 0;  // fewer than prompt_tokens; 0: it has none
};

inline constexpr size_t kMostTracedRequests = 1'000'000;

// Empty lines are skipped. DATA_LOSS, "file:line: ...", for anything else, no request or more than
// kMostTracedRequests.
StatusOr<std::vector<TracedRequest>> ParseTrace(std::string_view text, const std::string& file);

}  // namespace terrace
