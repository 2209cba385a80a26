// Answers on their way to an HTTP client: whole, or as server-sent events. Called by one thread at a time,
// except is_closed.
#pragma once

#include <memory>

#include "base/http_server.h"
#include "router/api/openai_format.h"
#include "router/request/answer.h"

namespace terrace {

// `request_id` goes out as x-request-id.
std::shared_ptr<AnswerSink> MakeWholeAnswerSink(CompletionHead head, std::string request_id,
                                                std::shared_ptr<HttpResponder> responder);

// The head of the reply goes out with the first piece: an error before it has a status of its own. A later
// error is an event {"error": ...} and the end, without [DONE].
std::shared_ptr<AnswerSink> MakeEventStreamSink(CompletionHead head, std::string request_id,
                                                std::shared_ptr<HttpResponder> responder);

// An error as the whole reply; Retry-After where trying again may help.
void SendError(const Status& error, const std::string& request_id, HttpResponder& responder);

}  // namespace terrace
