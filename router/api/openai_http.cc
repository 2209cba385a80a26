#include "router/api/openai_http.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "base/byte_budget.h"
#include "router/api/openai_format.h"
#include "router/api/openai_parse.h"
#include "router/api/openai_sinks.h"
#include "router/api/openai_tokenize.h"
#include "router/api/prompt_list.h"
#include "router/api/rate_limit_headers.h"
#include "router/dispatch/attempts.h"
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

bool HasHeader(const HttpRequest& request, const char* name) {
  return request.headers.find(name) != request.headers.end();
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

  // What the head alone decides is answered before any body is read.
  HttpHandler OnHead(const HttpRequest& head, const std::shared_ptr<HttpResponder>& responder) {
    Call call{.options = options_(), .http = head, .id = RequestId(head), .responder = responder};
    if (head.path == "/healthz" || head.path == "/readyz") {
      Probe(call);
      return nullptr;
    }
    const auto tenant = AuthenticateCaller(*call.options, HeaderOf(head, "authorization"));
    if (!tenant.ok()) {  // of every route, also of those that do not exist
      Refuse(ApiOf(head.path), tenant.status(), call);
      return nullptr;
    }
    call.tenant = *tenant;
    if (!TakesBody(head.path)) {
      Show(call);
      return nullptr;
    }
    if (!CheckMethod(call, "POST") || !CheckMediaType(call) || !CheckTimeout(call)) return nullptr;
    return [self = shared_from_this(), options = call.options, id = call.id, caller = *tenant](
               HttpRequest whole, std::shared_ptr<HttpResponder> same_responder) {
      const auto kept = std::make_shared<HttpRequest>(std::move(whole));
      const auto memory = std::make_shared<ByteLease>(std::move(kept->body_lease));
      const auto call_of = [options, id, caller, kept, same_responder, memory] {
        return Call{.options = options,
                    .http = *kept,
                    .id = id,
                    .responder = same_responder,
                    .tenant = caller,
                    .memory = memory};
      };
      if (kept->body.size() < kLongBodyBytes || !options->run_aside) return self->Handle(call_of());
      // It may wait long for its turn; what nobody waits for any more is let go of, and not read.
      const auto is_taken = std::make_shared<std::atomic<bool>>(false);
      same_responder->OnClose([self, options, id, caller, kept, memory, is_taken] {
        if (is_taken->exchange(true)) return;
        const std::shared_ptr<HttpResponder> nobody;
        self->Record(ApiOf(kept->path), ClientGone(),
                     {.options = options, .http = *kept, .id = id, .responder = nobody, .tenant = caller});
        std::string().swap(kept->body);
        memory->Resize(0);
      });
      const auto task = [self, call_of, is_taken] {
        if (!is_taken->exchange(true)) self->Handle(call_of());
      };
      if (options->run_aside(caller->name, task) || is_taken->exchange(true)) return;
      self->Refuse(ApiOf(kept->path), TooManyTexts(), call_of());
    };
  }

 private:
  struct Call {
    std::shared_ptr<const ApiOptions> options;
    const HttpRequest& http;  // its head only, before the caller is known
    std::string id;
    const std::shared_ptr<HttpResponder>& responder;
    TenantPtr tenant = {};                   // null before the caller is known
    std::shared_ptr<ByteLease> memory = {};  // of the body; null before it is there
  };

  static bool TakesBody(std::string_view path) {
    return path == kChatPath || path == kCompletionPath || path == kTokenizePath || path == kDetokenizePath;
  }

  // Of a path that TakesBody, with it.
  void Handle(const Call& call) {
    const std::string& path = call.http.path;
    if (path == kChatPath) return Complete(ApiKind::kOpenAiChat, call);
    if (path == kCompletionPath) return Complete(ApiKind::kOpenAiCompletion, call);
    if (path == kTokenizePath) return Tokenize(call);
    Detokenize(call);
  }

  // Any other path.
  void Show(const Call& call) {
    const std::string_view path = call.http.path;
    if (path == kModelsPath) {
      if (CheckMethod(call, "GET")) ListModels(call);
    } else if (path.starts_with(kModelPrefix)) {
      if (CheckMethod(call, "GET")) ShowModel(call, path.substr(kModelPrefix.size()));
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

  static ReplyHeaders HeadersOf(const Call& call) {
    return [options = call.options, id = call.id, tenant = call.tenant] {
      HttpHeaders headers = {{"x-request-id", id}};
      if (options->rate_limits && tenant != nullptr) AddRateLimits(options->rate_limits(*tenant), headers);
      return headers;
    };
  }

  // What HTTP itself has words for.
  void SendHttpError(int status, std::string_view message, const Call& call, const HttpHeaders& more = {}) {
    const Status error = status == 404 ? NotFound(message) : InvalidArgument(message);
    Record(ApiOf(call.http.path), WithReason(error, HttpErrorCode(status)), call, status);
    HttpHeaders headers = HeadersOf(call)();
    headers.insert(headers.end(), more.begin(), more.end());
    call.responder->Send(status, HttpErrorBody(status, message), "application/json", headers);
  }

  bool CheckMethod(const Call& call, const char* allowed) {
    if (call.http.method == allowed) return true;
    SendHttpError(405, Concat("use ", allowed), call, {{"allow", allowed}});
    return false;
  }

  bool CheckTimeout(const Call& call) {
    const auto timeout = TimeoutOf(call.http);
    if (!timeout.ok()) Refuse(ApiOf(call.http.path), timeout.status(), call);
    return timeout.ok();
  }

  // In seconds; negative when none is asked for.
  static StatusOr<double> TimeoutOf(const HttpRequest& http) {
    const std::string_view header = HeaderOf(http, "x-request-timeout-seconds");
    return header.empty() ? StatusOr<double>(-1.0) : ParseTimeoutHeader(header);
  }

  bool CheckMediaType(const Call& call) {
    const std::string encoding = LowerCase(HeaderOf(call.http, "content-encoding"));
    const bool is_plain = encoding.empty() || encoding == "identity";
    if (IsJson(HeaderOf(call.http, "content-type")) && is_plain) return true;
    SendHttpError(415, "the body must be application/json in UTF-8, not compressed", call);
    return false;
  }

  void Complete(ApiKind api, const Call& call) {
    const bool is_chat = api == ApiKind::kOpenAiChat;
    auto parsed = is_chat ? ParseOpenAiChat(call.http.body) : ParseOpenAiCompletion(call.http.body);
    const Status bad = parsed.ok() ? ReadOverrides(call.http, parsed->fields) : parsed.status();
    const auto requests =
        bad.ok() ? MakeRequests(call, std::move(parsed->fields), std::move(parsed->more_prompts)) : bad;
    if (!requests.ok()) return Refuse(api, requests.status(), call);
    const Request& request = *requests->front();  // the others differ in the prompt alone
    const CompletionHead head{
        .is_chat = is_chat,
        .id = (is_chat ? "chatcmpl-" : "cmpl-") + call.id,
        .model = request.model().empty() ? call.options->default_model : request.model(),
        .created_unix_seconds = UnixSeconds(),
        .logprobs = request.logprobs(),
        .top_logprobs = request.top_logprobs(),
        .echoes_control = std::holds_alternative<std::vector<TokenId>>(request.input()),
        .include_usage = parsed->include_usage,
        .shows_replicas = call.options->shows_replicas(),
        .choices_per_prompt = requests->size() > 1 ? request.choices() : UINT32_MAX};
    const auto sink = request.is_streamed() ? MakeEventStreamSink(head, HeadersOf(call), call.responder)
                                            : MakeWholeAnswerSink(head, HeadersOf(call), call.responder);
    call.responder->OnClose(requests->size() > 1 ? GenerateAll(dispatcher_, *requests, sink)
                                                 : dispatcher_.Generate(requests->front(), sink));
    KeepMemory(*requests, *call.memory);
  }

  // The body goes now, and what the requests have of it stays.
  static void KeepMemory(const std::vector<RequestPtr>& requests, ByteLease& memory) {
    size_t kept = 0;
    for (const RequestPtr& request : requests) {
      const auto* tokens = std::get_if<std::vector<TokenId>>(&request->input());
      kept += tokens != nullptr ? tokens->size() * sizeof(TokenId) : TextBytes(*request);
    }
    memory.Resize(std::min(kept, memory.bytes()));
  }

  void Tokenize(const Call& call) {
    auto parsed = ParseTokenize(call.http.body);
    const auto request = parsed.ok() ? MakeRequest(call, std::move(parsed->fields)) : parsed.status();
    if (!request.ok()) return Refuse(ApiKind::kTokenize, request.status(), call);
    const bool with_strings = parsed->return_token_strs;
    const auto answer = [headers = HeadersOf(call), responder = call.responder,
                         with_strings](const StatusOr<TokenizedInput>& input) {
      if (!input.ok()) return SendError(input.status(), headers(), *responder);
      SendJson(TokenizeJson(*input, with_strings), headers(), *responder);
    };
    call.responder->OnClose(dispatcher_.Tokenize(*request, with_strings, answer));
  }

  void Detokenize(const Call& call) {
    auto parsed = ParseDetokenize(call.http.body);
    const auto request = parsed.ok() ? MakeRequest(call, *std::move(parsed)) : parsed.status();
    if (!request.ok()) return Refuse(ApiKind::kTokenize, request.status(), call);
    const auto answer = [headers = HeadersOf(call),
                         responder = call.responder](const StatusOr<std::string>& text) {
      if (!text.ok()) return SendError(text.status(), headers(), *responder);
      SendJson({{"prompt", *text}}, headers(), *responder);
    };
    call.responder->OnClose(dispatcher_.Detokenize(*request, answer));
  }

  // What never became a request.
  void Refuse(ApiKind api, const Status& error, const Call& call) {
    Record(api, error, call);
    SendError(error, HeadersOf(call)(), *call.responder);
  }

  // `http_status` 0: that of the error.
  void Record(ApiKind api, const Status& error, const Call& call, int http_status = 0) {
    dispatcher_.RecordRefused({.api = api,
                               .request_id = call.id,
                               .tenant = call.tenant,
                               .trace = TraceOf(call.http),
                               .status = error,
                               .is_http = true,
                               .http_status = http_status,
                               .peer = call.http.peer});
  }

  TraceContext TraceOf(const HttpRequest& http) {
    return ids_.NextTrace(HeaderOf(http, "traceparent"), HeaderOf(http, "tracestate"));
  }

  // What the request's headers say about who answers, and how.
  static Status ReadOverrides(const HttpRequest& http, RequestFields& fields) {
    const char* const tier = TierParam(fields.api);
    fields.tier = HeaderOf(http, tier);
    if (fields.tier.empty() && HasHeader(http, tier))
      return ParamError("invalid_value", tier, "must not be empty");
    const std::pair<const char*, std::optional<double>&> limits[] = {
        {MaxUsdParam(fields.api), fields.max_usd}, {MaxSecondsParam(fields.api), fields.max_seconds}};
    for (const auto& [name, limit] : limits) {
      if (!HasHeader(http, name)) continue;
      ASSIGN_OR_RETURN(limit, ParseNumberHeader(name, HeaderOf(http, name)));
    }
    if (const char* const tokens = SpeculationParam(fields.api); HasHeader(http, tokens)) {
      ASSIGN_OR_RETURN(fields.speculation_max_tokens, ParseSpeculationHeader(HeaderOf(http, tokens)));
    }
    return {};
  }

  static void SendJson(const Json& body, const HttpHeaders& headers, HttpResponder& responder) {
    responder.Send(200, ToJsonText(body), "application/json", headers);
  }

  StatusOr<RequestPtr> MakeRequest(const Call& call, RequestFields fields) {
    ASSIGN_OR_RETURN(const double timeout_seconds, TimeoutOf(call.http));
    fields.request_id = call.id;
    fields.tenant = call.tenant;
    fields.trace = TraceOf(call.http);
    fields.is_http = true;
    fields.peer = call.http.peer;
    fields.arrival = clock_.Now();
    fields.deadline = DeadlineOf(*call.options, fields.arrival, timeout_seconds);
    fields.memory = call.memory;
    return Request::Make(std::move(fields));
  }

  // One for each prompt, of which `fields` has the first.
  StatusOr<std::vector<RequestPtr>> MakeRequests(const Call& call, RequestFields fields,
                                                 std::vector<RequestInput> more_prompts) {
    std::vector<RequestInput> prompts(1 + more_prompts.size());
    const uint32_t places = call.tenant->max_in_flight;
    if (places > 0 && prompts.size() > places)  // it would be refused whenever it comes
      return ParamError("invalid_value", "prompt", prompts.size(), " prompts, and the tenant may have ",
                        places, " requests at once");
    prompts.front() = std::move(fields.input);
    std::move(more_prompts.begin(), more_prompts.end(), prompts.begin() + 1);
    std::vector<RequestPtr> out;
    for (size_t i = 0; i < prompts.size(); ++i) {
      RequestFields each = i + 1 < prompts.size() ? fields : std::move(fields);
      each.input = std::move(prompts[i]);
      auto request = MakeRequest(call, std::move(each));
      if (!request.ok()) return prompts.size() > 1 ? OfPrompt(request.status(), i) : request.status();
      out.push_back(*std::move(request));
    }
    return out;
  }

  void ListModels(const Call& call) const {
    Json data = Json::array();
    for (const ModelInfo& model : dispatcher_.ListModels(*call.tenant)) {
      data.push_back(ModelJson(model, call.options->created_unix_seconds));
    }
    SendJson({{"object", "list"}, {"data", std::move(data)}}, HeadersOf(call)(), *call.responder);
  }

  // `escaped` as it is in the URL: a name's slashes may be written either way.
  void ShowModel(const Call& call, std::string_view escaped) {
    const std::string name = DecodeUrl(escaped);
    for (const ModelInfo& model : dispatcher_.ListModels(*call.tenant)) {
      if (model.id != name) continue;
      return SendJson(ModelJson(model, call.options->created_unix_seconds), HeadersOf(call)(),
                      *call.responder);
    }
    Refuse(ApiKind::kOther, ModelNotFound(name), call);
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
