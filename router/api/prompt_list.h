// A completion of several prompts. Each prompt is a Request of its own, to its end: admitted, answered,
// logged and paid for like any other; here they become one reply. Choice i of prompt p, of n choices a
// prompt, is its choice p * n + i. The first prompt that fails fails the reply and cancels the others.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/status.h"
#include "router/api/openai_sinks.h"
#include "router/dispatch/dispatcher.h"
#include "router/request/request.h"

namespace terrace {

// `requests` differ in their input alone. Generates them all; `sink` is told what AnswerSink says, once all
// are over. The result cancels them.
Dispatcher::CancelCall GenerateAll(Dispatcher& dispatcher, std::span<const RequestPtr> requests,
                                   std::shared_ptr<ReplySink> sink);

// `error` of the prompt with that index: the parameter "prompt" becomes "prompt[2]".
Status OfPrompt(const Status& error, size_t prompt);

}  // namespace terrace
