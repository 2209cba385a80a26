// What clients may say about tools: limits and shapes, for Request::Make. Pure.
#pragma once

#include <cstddef>
#include <vector>

#include "base/status.h"
#include "text/chat_template.h"

namespace terrace {

inline constexpr size_t kMaxTools = 128;                     // also calls in one message
inline constexpr size_t kMaxToolNameBytes = 64;              // of letters, digits, "_" and "-"
inline constexpr size_t kMaxToolsBytes = size_t{256} << 10;  // all tools together
inline constexpr size_t kMaxToolJsonDepth = 32, kMaxToolJsonNodes = 5000;
inline constexpr size_t kMaxToolCallIdBytes = 256;
inline constexpr size_t kMaxArgumentsBytes = size_t{1} << 20;  // of all calls of a conversation together

// INVALID_ARGUMENT with reason and the parameter as OpenAI names it: "tools[3].function.name".
Status CheckTools(const std::vector<Tool>& tools);
// The calls of `message` and the call it answers; `path` is the message's: "messages[3]".
Status CheckToolCalls(const ChatMessage& message, const std::string& path);

}  // namespace terrace
