// Answers and errors in OpenAI's JSON. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "router/dispatch/dispatcher.h"
#include "router/request/answer.h"

namespace terrace {

// What every object of one reply repeats.
struct CompletionHead {
  std::string id;     // "chatcmpl-..."
  std::string model;  // as the client named it
  int64_t created_unix_seconds = 0;
  bool logprobs = false;
  bool include_usage = false;  // of a stream: the other chunks say "usage": null
};

struct WholeChoice {
  AnswerPiece answer = {};
  AnswerEnd end = AnswerEnd::kStop;
};

// `prompt_tokens` become the body's "prompt_logprobs", when there are any: null for the first token, which
// has none, then {"token_id", "token", "bytes", "logprob", "top_logprobs"}.
Json CompletionJson(const CompletionHead& head, const std::vector<WholeChoice>& choices,
                    const std::vector<AnswerToken>& prompt_tokens, const AnswerSummary& total);

// The chunks of a stream. The first one of each choice has the role, the last one the reason and Terrace's
// own part; usage is that of all choices.
Json FirstChunk(const CompletionHead& head, uint32_t choice);
Json PieceChunk(const CompletionHead& head, const AnswerPiece& piece);
Json LastChunk(const CompletionHead& head, uint32_t choice, const AnswerSummary& summary);
Json UsageChunk(const CompletionHead& head, const AnswerSummary& total);

Json ModelJson(const ModelInfo& model, int64_t created_unix_seconds);

// {"error":{"message","type","param","code"}}.
Json ErrorJson(const Status& error);
// 400, 404, 499, 500, 501, 503 or 504.
int HttpStatusOf(const Status& error);
// The body of an error that the HTTP server itself found: 400, 408, 413, 431, 500, or a route's 404, 405,
// 415.
std::string HttpErrorBody(int status, std::string_view message);

// One server-sent event.
std::string SseEvent(const Json& data);

}  // namespace terrace
