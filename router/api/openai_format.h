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
#include "router/request/http_status.h"

namespace terrace {

// What every object of one reply repeats.
struct CompletionHead {
  bool is_chat = true;  // else a completion
  std::string id;       // "chatcmpl-...", "cmpl-..."
  std::string model;    // as the client named it
  int64_t created_unix_seconds = 0;
  bool logprobs = false;
  uint32_t top_logprobs = 0;
  bool echoes_control = false;  // a prompt of token ids: its control tokens are part of the echoed text
  bool include_usage = false;   // of a stream: the other chunks say "usage": null
  bool shows_replicas = true;   // the addresses of the workers that were asked
  uint32_t choices_per_prompt = UINT32_MAX;  // less: there are several prompts
};

struct WholeChoice {
  AnswerPiece answer = {};
  AnswerEnd end = AnswerEnd::kStop;
};

// `prompts` are the tokens of each prompt, when they are wanted: of a chat, which has one, they become the
// body's "prompt_logprobs", null for the first token, which has none, then {"token_id", "token", "bytes",
// "logprob", "top_logprobs"}; of a completion, whose text begins with the prompt, they come first in each of
// its choices' "logprobs".
Json CompletionJson(const CompletionHead& head, const std::vector<WholeChoice>& choices,
                    const std::vector<std::vector<AnswerToken>>& prompts, const AnswerSummary& total);

// The chunks of a stream. The first one of each choice of a chat has the role, the last one the reason and
// Terrace's own part; usage is that of all choices. Between them are the PieceEvents. A call is two chunks,
// its `index` counted in its choice: id, type and name, then the arguments.
Json FirstChunk(const CompletionHead& head, uint32_t choice);
Json CallChunk(const CompletionHead& head, uint32_t choice, const ToolCall& call, size_t index);
Json ArgumentsChunk(const CompletionHead& head, uint32_t choice, const ToolCall& call, size_t index);
Json LastChunk(const CompletionHead& head, uint32_t choice, const AnswerSummary& summary);
Json UsageChunk(const CompletionHead& head, const AnswerSummary& total);

Json ModelJson(const ModelInfo& model, int64_t created_unix_seconds);

// `code` of an error that only HTTP has words for.
std::string_view HttpErrorCode(int status);
// {"error":{"message","type","param","code"}}.
Json ErrorJson(const Status& error);
// The body of an error that the HTTP server itself found: 400, 408, 413, 431, 500, 503, or a route's 404,
// 405, 415.
std::string HttpErrorBody(int status, std::string_view message);

// A token's text as a key or in a list: what is no UTF-8 by itself as OpenAI writes it, "bytes:\xe4", so that
// different bytes stay different.
std::string TokenText(const std::string& bytes);

// One server-sent event.
std::string SseEvent(const Json& data);

// The events of the pieces of one choice, of which there is one for each token: the JSON of a chunk, but only
// its text and its log-probabilities are made each time; what stands around them is made once. One thread at
// a time.
class PieceEvents {
 public:
  PieceEvents(const CompletionHead& head, uint32_t choice);  // `head` outlives it
  // Of the choice's next piece; its tool calls have chunks of their own.
  std::string Next(const AnswerPiece& piece);

 private:
  const CompletionHead& head_;
  std::string before_, between_, after_;  // the text and the log-probabilities, in the order of their names
  size_t offset_ = 0;                     // characters of the choice's tokens so far
};

}  // namespace terrace
