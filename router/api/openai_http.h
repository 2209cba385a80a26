// The OpenAI-compatible HTTP API: POST /v1/chat/completions and /v1/completions, GET /v1/models and
// /v1/models/{id}; and vLLM's POST /tokenize, /detokenize; all with a key where keys are asked for, by the
// head of the request: without one no body is read. GET /healthz and /readyz need none. The handler runs on
// the HTTP server's threads and does not block; the dispatcher outlives the server.
#pragma once

#include "base/http_server.h"
#include "router/api/api_options.h"
#include "router/dispatch/dispatcher.h"

namespace terrace {

HttpHeadHandler MakeOpenAiHandler(Dispatcher& dispatcher, ApiOptionsSource options, const Clock& clock);

}  // namespace terrace
