#include "router/api/openai_http.h"

#include <algorithm>
#include <utility>

#include "router/api/openai_format.h"
#include "router/api/openai_parse.h"
#include "router/api/openai_sinks.h"
#include "router/request/param.h"

namespace terrace {
namespace {

constexpr std::string_view kChatPath = "/v1/chat/completions";
constexpr std::string_view kCompletionPath = "/v1/completions";
constexpr std::string_view kModelsPath = "/v1/models";
constexpr std::string_view kModelPrefix = "/v1/models/";

std::string_view HeaderOf(const HttpRequest& request, const char* name) {
  const auto found = request.headers.find(name);
  return found == request.headers.end() ? std::string_view() : std::string_view(found->second);
}

std::string LowerCase(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

// "application/json", with at most charset=utf-8 behind it.
bool IsJson(std::string_view content_type) {
  std::string type = LowerCase(content_type);
  std::erase_if(type, [](char c) { return c == ' ' || c == '"'; });
  return type == "application/json" || type == "application/json;charset=utf-8";
}

class OpenAiApi {
 public:
  OpenAiApi(Dispatcher& dispatcher, const ApiOptions& options, const Clock& clock)
      : dispatcher_(dispatcher), options_(options), clock_(clock), ids_(options.seed) {}

  void Handle(const HttpRequest& http, const std::shared_ptr<HttpResponder>& responder) {
    const std::string id = RequestId(http);
    if (http.path == kChatPath) {
      if (CheckMethod(http, "POST", id, *responder)) Complete(ApiKind::kOpenAiChat, http, id, responder);
    } else if (http.path == kCompletionPath) {
      if (CheckMethod(http, "POST", id, *responder))
        Complete(ApiKind::kOpenAiCompletion, http, id, responder);
    } else if (http.path == kModelsPath) {
      if (CheckMethod(http, "GET", id, *responder)) ListModels(id, *responder);
    } else if (http.path.starts_with(kModelPrefix)) {
      if (CheckMethod(http, "GET", id, *responder))
        ShowModel(http.path.substr(kModelPrefix.size()), id, *responder);
    } else {
      SendHttpError(404, "no such URL", id, *responder);
    }
  }

 private:
  // The client's own id when it is one that logs can take.
  std::string RequestId(const HttpRequest& http) {
    const std::string_view given = HeaderOf(http, "x-request-id");
    const bool is_plain = std::all_of(given.begin(), given.end(), [](char c) { return c > ' ' && c <= '~'; });
    const bool fits = !given.empty() && given.size() <= Request::kMaxRequestIdBytes;
    return fits && is_plain ? std::string(given) : ids_.Next();
  }

  static void SendHttpError(int status, std::string_view message, const std::string& id,
                            HttpResponder& responder, HttpHeaders headers = {}) {
    headers.emplace_back("x-request-id", id);
    responder.Send(status, HttpErrorBody(status, message), "application/json", headers);
  }

  static bool CheckMethod(const HttpRequest& http, const char* allowed, const std::string& id,
                          HttpResponder& responder) {
    if (http.method == allowed) return true;
    SendHttpError(405, Concat("use ", allowed), id, responder, {{"allow", allowed}});
    return false;
  }

  void Complete(ApiKind api, const HttpRequest& http, const std::string& id,
                const std::shared_ptr<HttpResponder>& responder) {
    const std::string encoding = LowerCase(HeaderOf(http, "content-encoding"));
    if (!IsJson(HeaderOf(http, "content-type")) || !(encoding.empty() || encoding == "identity")) {
      return SendHttpError(415, "the body must be application/json in UTF-8, not compressed", id, *responder);
    }
    const bool is_chat = api == ApiKind::kOpenAiChat;
    auto parsed = is_chat ? ParseOpenAiChat(http.body) : ParseOpenAiCompletion(http.body);
    auto request = parsed.ok() ? MakeRequest(http, id, std::move(parsed->fields)) : parsed.status();
    if (!request.ok()) {
      dispatcher_.RecordRefused(api, id, request.status());
      return SendError(request.status(), id, *responder);
    }
    const CompletionHead head{
        .is_chat = is_chat,
        .id = (is_chat ? "chatcmpl-" : "cmpl-") + id,
        .model = (*request)->model().empty() ? options_.default_model : (*request)->model(),
        .created_unix_seconds = UnixSeconds(),
        .logprobs = (*request)->logprobs(),
        .top_logprobs = (*request)->top_logprobs(),
        .echoes_control = std::holds_alternative<std::vector<TokenId>>((*request)->input()),
        .include_usage = parsed->include_usage};
    const auto sink = (*request)->is_streamed() ? MakeEventStreamSink(head, id, responder)
                                                : MakeWholeAnswerSink(head, id, responder);
    responder->OnClose(dispatcher_.Generate(*std::move(request), sink));
  }

  StatusOr<RequestPtr> MakeRequest(const HttpRequest& http, const std::string& id,
                                   RequestFields fields) const {
    double timeout_seconds = -1;
    if (const auto header = HeaderOf(http, "x-request-timeout-seconds"); !header.empty()) {
      ASSIGN_OR_RETURN(timeout_seconds, ParseTimeoutHeader(header));
    }
    fields.request_id = id;
    fields.arrival = clock_.Now();
    fields.deadline = DeadlineOf(options_, fields.arrival, timeout_seconds);
    return Request::Make(std::move(fields));
  }

  void ListModels(const std::string& id, HttpResponder& responder) const {
    Json data = Json::array();
    for (const ModelInfo& model : dispatcher_.ListModels()) {
      data.push_back(ModelJson(model, options_.created_unix_seconds));
    }
    responder.Send(200, ToJsonText({{"object", "list"}, {"data", std::move(data)}}), "application/json",
                   {{"x-request-id", id}});
  }

  void ShowModel(std::string_view name, const std::string& id, HttpResponder& responder) const {
    for (const ModelInfo& model : dispatcher_.ListModels()) {
      if (model.id != name) continue;
      return responder.Send(200, ToJsonText(ModelJson(model, options_.created_unix_seconds)),
                            "application/json", {{"x-request-id", id}});
    }
    SendError(ModelNotFound(name), id, responder);
  }

  static int64_t UnixSeconds() {
    return std::chrono::duration_cast<std::chrono::seconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }

  Dispatcher& dispatcher_;
  const ApiOptions options_;
  const Clock& clock_;
  RequestIds ids_;
};

}  // namespace

HttpHandler MakeOpenAiHandler(Dispatcher& dispatcher, const ApiOptions& options, const Clock& clock) {
  const auto api = std::make_shared<OpenAiApi>(dispatcher, options, clock);
  return [api](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    api->Handle(request, responder);
  };
}

}  // namespace terrace
