#include "router/api/openai_http.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "router/api/openai_format.h"
#include "router/api/openai_parse.h"
#include "router/api/openai_sinks.h"
#include "router/api/openai_tokenize.h"
#include "router/request/param.h"

namespace terrace {
namespace {

constexpr std::string_view kChatPath = "/v1/chat/completions";
constexpr std::string_view kCompletionPath = "/v1/completions";
constexpr std::string_view kTokenizePath = "/tokenize";
constexpr std::string_view kDetokenizePath = "/detokenize";
constexpr std::string_view kModelsPath = "/v1/models";
constexpr std::string_view kModelPrefix = "/v1/models/";
constexpr size_t kLongBodyBytes = 16 << 10;  // parsing such a one takes a tenth of a millisecond and more

std::string_view HeaderOf(const HttpRequest& request, const char* name) {
  const auto found = request.headers.find(name);
  return found == request.headers.end() ? std::string_view() : std::string_view(found->second);
}

std::string LowerCase(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

// %41 is A; what is no escape stays as it is.
std::string DecodeUrl(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = 0;
    const std::string_view digits = text.substr(std::min(i + 1, text.size()), 2);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), byte, 16);
    const bool is_escape =
        text[i] == '%' && digits.size() == 2 && error == std::errc() && end == digits.end();
    out.push_back(is_escape ? static_cast<char>(byte) : text[i]);
    if (is_escape) i += 2;
  }
  return out;
}

// "application/json", with at most charset=utf-8 behind it.
bool IsJson(std::string_view content_type) {
  std::string type = LowerCase(content_type);
  std::erase_if(type, [](char c) { return c == ' ' || c == '"'; });
  return type == "application/json" || type == "application/json;charset=utf-8";
}

class OpenAiApi : public std::enable_shared_from_this<OpenAiApi> {
 public:
  OpenAiApi(Dispatcher& dispatcher, ApiOptionsSource options, const Clock& clock)
      : dispatcher_(dispatcher), options_(std::move(options)), clock_(clock), ids_(options_()->seed) {}

  // Probes and callers without a key are answered before any body is read.
  HttpHandler OnHead(const HttpRequest& head, const std::shared_ptr<HttpResponder>& responder) {
    const Call call{.options = options_(), .http = head, .id = RequestId(head), .responder = responder};
    if (head.path == "/healthz" || head.path == "/readyz") {
      Probe(call);
      return nullptr;
    }
    const auto tenant = AuthenticateCaller(*call.options, HeaderOf(head, "authorization"));
    if (!tenant.ok()) {
      RefuseCaller(tenant.status(), call);
      return nullptr;
    }
    return [self = shared_from_this(), options = call.options, id = call.id, caller = *tenant](
               HttpRequest whole, std::shared_ptr<HttpResponder> same_responder) {
      if (whole.body.size() < kLongBodyBytes || !options->run_aside) {
        return self->Handle(
            {.options = options, .http = whole, .id = id, .responder = same_responder, .tenant = caller});
      }
      const auto kept = std::make_shared<const HttpRequest>(std::move(whole));
      const bool is_taken =
          options->run_aside(caller->name, [self, options, id, caller, kept, same_responder] {
            self->Handle(
                {.options = options, .http = *kept, .id = id, .responder = same_responder, .tenant = caller});
          });
      if (is_taken) return;
      self->Refuse(
          ApiOf(kept->path), TooManyTexts(),
          {.options = options, .http = *kept, .id = id, .responder = same_responder, .tenant = caller});
    };
  }

 private:
  struct Call {
    std::shared_ptr<const ApiOptions> options;
    const HttpRequest& http;  // its head only, before the caller is known
    std::string id;
    const std::shared_ptr<HttpResponder>& responder;
    TenantPtr tenant = {};  // null before the caller is known
  };

  void Handle(const Call& call) {
    const HttpRequest& http = call.http;
    if (http.path == kChatPath) {
      if (CheckMethod(call, "POST")) Complete(ApiKind::kOpenAiChat, call);
    } else if (http.path == kCompletionPath) {
      if (CheckMethod(call, "POST")) Complete(ApiKind::kOpenAiCompletion, call);
    } else if (http.path == kTokenizePath) {
      if (CheckMethod(call, "POST")) Tokenize(call);
    } else if (http.path == kDetokenizePath) {
      if (CheckMethod(call, "POST")) Detokenize(call);
    } else if (http.path == kModelsPath) {
      if (CheckMethod(call, "GET")) ListModels(call);
    } else if (http.path.starts_with(kModelPrefix)) {
      if (CheckMethod(call, "GET")) ShowModel(call, std::string_view(http.path).substr(kModelPrefix.size()));
    } else {
      SendHttpError(404, "no such URL", call);
    }
  }

  // What load balancers ask: no key, and no more than yes or no.
  void Probe(const Call& call) {
    if (call.http.method != "HEAD" && !CheckMethod(call, "GET")) return;
    const bool is_ready = call.http.path == "/healthz" || !call.options->is_ready || call.options->is_ready();
    call.responder->Send(is_ready ? 200 : 503, is_ready ? "ok\n" : "not ready\n", "text/plain",
                         {{"x-request-id", call.id}});
  }

  // Every route has its key asked for, also those that do not exist.
  void RefuseCaller(const Status& error, const Call& call) { Refuse(ApiOf(call.http.path), error, call); }

  static ApiKind ApiOf(std::string_view path) {
    if (path == kChatPath) return ApiKind::kOpenAiChat;
    if (path == kCompletionPath) return ApiKind::kOpenAiCompletion;
    return path == kTokenizePath || path == kDetokenizePath ? ApiKind::kTokenize : ApiKind::kOther;
  }

  // The client's own id when it is one that logs can take.
  std::string RequestId(const HttpRequest& http) {
    const std::string_view given = HeaderOf(http, "x-request-id");
    const bool is_plain = std::all_of(given.begin(), given.end(), [](char c) { return c > ' ' && c <= '~'; });
    const bool fits = !given.empty() && given.size() <= Request::kMaxRequestIdBytes;
    return fits && is_plain ? std::string(given) : ids_.Next();
  }

  // What HTTP itself has words for.
  void SendHttpError(int status, std::string_view message, const Call& call, HttpHeaders headers = {}) {
    const Status error = status == 404 ? NotFound(message) : InvalidArgument(message);
    dispatcher_.RecordRefused(ApiOf(call.http.path), call.id, call.tenant,
                              WithReason(error, HttpErrorCode(status)));
    headers.emplace_back("x-request-id", call.id);
    call.responder->Send(status, HttpErrorBody(status, message), "application/json", headers);
  }

  bool CheckMethod(const Call& call, const char* allowed) {
    if (call.http.method == allowed) return true;
    SendHttpError(405, Concat("use ", allowed), call, {{"allow", allowed}});
    return false;
  }

  bool CheckMediaType(const Call& call) {
    const std::string encoding = LowerCase(HeaderOf(call.http, "content-encoding"));
    const bool is_plain = encoding.empty() || encoding == "identity";
    if (IsJson(HeaderOf(call.http, "content-type")) && is_plain) return true;
    SendHttpError(415, "the body must be application/json in UTF-8, not compressed", call);
    return false;
  }

  void Complete(ApiKind api, const Call& call) {
    if (!CheckMediaType(call)) return;
    const std::string& id = call.id;
    const bool is_chat = api == ApiKind::kOpenAiChat;
    auto parsed = is_chat ? ParseOpenAiChat(call.http.body) : ParseOpenAiCompletion(call.http.body);
    auto request = parsed.ok() ? MakeRequest(call, std::move(parsed->fields)) : parsed.status();
    if (!request.ok()) return Refuse(api, request.status(), call);
    const CompletionHead head{
        .is_chat = is_chat,
        .id = (is_chat ? "chatcmpl-" : "cmpl-") + id,
        .model = (*request)->model().empty() ? call.options->default_model : (*request)->model(),
        .created_unix_seconds = UnixSeconds(),
        .logprobs = (*request)->logprobs(),
        .top_logprobs = (*request)->top_logprobs(),
        .echoes_control = std::holds_alternative<std::vector<TokenId>>((*request)->input()),
        .include_usage = parsed->include_usage,
        .shows_replicas = call.options->shows_replicas()};
    const auto sink = (*request)->is_streamed() ? MakeEventStreamSink(head, id, call.responder)
                                                : MakeWholeAnswerSink(head, id, call.responder);
    call.responder->OnClose(dispatcher_.Generate(*std::move(request), sink));
  }

  void Tokenize(const Call& call) {
    if (!CheckMediaType(call)) return;
    auto parsed = ParseTokenize(call.http.body);
    const auto request = parsed.ok() ? MakeRequest(call, std::move(parsed->fields)) : parsed.status();
    if (!request.ok()) return Refuse(ApiKind::kTokenize, request.status(), call);
    const bool with_strings = parsed->return_token_strs;
    const auto answer = [id = call.id, responder = call.responder,
                         with_strings](const StatusOr<TokenizedInput>& input) {
      if (!input.ok()) return SendError(input.status(), id, *responder);
      SendJson(TokenizeJson(*input, with_strings), id, *responder);
    };
    call.responder->OnClose(dispatcher_.Tokenize(*request, with_strings, answer));
  }

  void Detokenize(const Call& call) {
    if (!CheckMediaType(call)) return;
    auto parsed = ParseDetokenize(call.http.body);
    const auto request = parsed.ok() ? MakeRequest(call, *std::move(parsed)) : parsed.status();
    if (!request.ok()) return Refuse(ApiKind::kTokenize, request.status(), call);
    const auto answer = [id = call.id, responder = call.responder](const StatusOr<std::string>& text) {
      if (!text.ok()) return SendError(text.status(), id, *responder);
      SendJson({{"prompt", *text}}, id, *responder);
    };
    call.responder->OnClose(dispatcher_.Detokenize(*request, answer));
  }

  // What never became a request.
  void Refuse(ApiKind api, const Status& error, const Call& call) {
    dispatcher_.RecordRefused(api, call.id, call.tenant, error);
    SendError(error, call.id, *call.responder);
  }

  static void SendJson(const Json& body, const std::string& request_id, HttpResponder& responder) {
    responder.Send(200, ToJsonText(body), "application/json", {{"x-request-id", request_id}});
  }

  StatusOr<RequestPtr> MakeRequest(const Call& call, RequestFields fields) {
    double timeout_seconds = -1;
    if (const auto header = HeaderOf(call.http, "x-request-timeout-seconds"); !header.empty()) {
      ASSIGN_OR_RETURN(timeout_seconds, ParseTimeoutHeader(header));
    }
    fields.request_id = call.id;
    fields.tenant = call.tenant;
    fields.trace = ids_.NextTrace(HeaderOf(call.http, "traceparent"));
    fields.arrival = clock_.Now();
    fields.deadline = DeadlineOf(*call.options, fields.arrival, timeout_seconds);
    return Request::Make(std::move(fields));
  }

  void ListModels(const Call& call) const {
    Json data = Json::array();
    for (const ModelInfo& model : dispatcher_.ListModels(*call.tenant)) {
      data.push_back(ModelJson(model, call.options->created_unix_seconds));
    }
    SendJson({{"object", "list"}, {"data", std::move(data)}}, call.id, *call.responder);
  }

  // `escaped` as it is in the URL: a name's slashes may be written either way.
  void ShowModel(const Call& call, std::string_view escaped) const {
    const std::string name = DecodeUrl(escaped);
    for (const ModelInfo& model : dispatcher_.ListModels(*call.tenant)) {
      if (model.id != name) continue;
      return SendJson(ModelJson(model, call.options->created_unix_seconds), call.id, *call.responder);
    }
    SendError(ModelNotFound(name), call.id, *call.responder);
  }

  static int64_t UnixSeconds() {
    return std::chrono::duration_cast<std::chrono::seconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }

  Dispatcher& dispatcher_;
  const ApiOptionsSource options_;
  const Clock& clock_;
  RequestIds ids_;
};

}  // namespace

HttpHeadHandler MakeOpenAiHandler(Dispatcher& dispatcher, ApiOptionsSource options, const Clock& clock) {
  const auto api = std::make_shared<OpenAiApi>(dispatcher, std::move(options), clock);
  return [api](const HttpRequest& head, const std::shared_ptr<HttpResponder>& responder) {
    return api->OnHead(head, responder);
  };
}

}  // namespace terrace
