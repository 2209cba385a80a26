// Answers on their way to an HTTP client: whole, or as server-sent events. Called by one thread at a time,
// except is_closed.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/http_server.h"
#include "router/api/openai_format.h"
#include "router/request/answer.h"

namespace terrace {

// What every reply to one request has in its head, as it is when that goes out. Thread-safe.
using ReplyHeaders = std::function<HttpHeaders()>;

// Of a reply to one prompt, or to several, whose choices are numbered through.
class ReplySink : public AnswerSink {
 public:
  void OnPromptTokens(std::vector<AnswerToken> tokens) final { OnTokensOfPrompt(0, std::move(tokens)); }
  virtual void OnTokensOfPrompt(size_t prompt, std::vector<AnswerToken> tokens) = 0;
};

std::shared_ptr<ReplySink> MakeWholeAnswerSink(CompletionHead head, ReplyHeaders headers,
                                               std::shared_ptr<HttpResponder> responder);

// The head of the reply goes out with the first piece: an error before it has a status of its own. A later
// error is an event {"error": ...} and the end, without [DONE].
std::shared_ptr<ReplySink> MakeEventStreamSink(CompletionHead head, ReplyHeaders headers,
                                               std::shared_ptr<HttpResponder> responder);

// An error as the whole reply; Retry-After where trying again may help.
void SendError(const Status& error, HttpHeaders headers, HttpResponder& responder);

}  // namespace terrace
