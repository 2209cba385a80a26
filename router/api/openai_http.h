// The OpenAI-compatible HTTP API: POST /v1/chat/completions, GET /v1/models, GET /v1/models/{id}. The handler
// runs on the HTTP server's threads and does not block; the dispatcher outlives the server.
#pragma once

#include "base/http_server.h"
#include "router/api/api_options.h"
#include "router/dispatch/dispatcher.h"

namespace terrace {

HttpHandler MakeOpenAiHandler(Dispatcher& dispatcher, const ApiOptions& options, const Clock& clock);

}  // namespace terrace
