// Where a request is in its caller's trace: W3C Trace Context, level 1 (headers "traceparent", version 00,
// and "tracestate"). Values only.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace terrace {

struct TraceContext {
  std::array<uint8_t, 16> trace_id = {};
  std::array<uint8_t, 8> span_id = {};  // of who sends it: the caller, or this router
  uint8_t flags = 0;                    // bit 0: sampled
  std::string state = {};               // "tracestate": what tracing systems say to each other; "": nothing

  std::string TraceIdHex() const;
  std::string SpanIdHex() const;
  std::string Header() const;  // "00-<trace id>-<span id>-<flags>"
};

// Absent when it is not valid, and must then be ignored. Later versions are read as far as version 00 goes.
std::optional<TraceContext> ParseTraceParent(std::string_view header);

// "tracestate" as it is passed on, its members with a comma between them: printable ASCII. "" when it is not
// valid: up to 32 members "key=value", 512 bytes.
std::string ParseTraceState(std::string_view header);

// This router's part in the trace that `parent` tells of, or in a new one, not sampled and without a state,
// when it is absent or not valid. `random` are 24 random bytes.
TraceContext ContinueTrace(std::string_view parent, std::string_view state,
                           const std::array<uint8_t, 24>& random);

}  // namespace terrace
