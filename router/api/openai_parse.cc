#include "router/api/openai_parse.h"

#include <charconv>
#include <cmath>
#include <string>
#include <utility>

#include "base/json.h"
#include "router/request/param.h"

namespace terrace {
namespace {

constexpr std::string_view kInvalid = "invalid_value";
constexpr std::string_view kUnsupported = "unsupported_parameter";

// Fields of the OpenAI API that would change the answer and are not served; null means absent.
constexpr const char* kUnsupportedInChats[] = {"tools",   "functions",        "function_call",
                                               "audio",   "prediction",       "web_search_options",
                                               "best_of", "reasoning_effort", "verbosity"};
constexpr int64_t kCompletionTokens = 16;  // of a completion without max_tokens: OpenAI's default

// The members of one JSON object; absent and null are the same. `path` goes in front of parameter names.
class Fields {
 public:
  explicit Fields(const Json& object, std::string path = "") : object_(object), path_(std::move(path)) {}

  const Json* Find(const char* name) const {
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  std::string Param(const char* name) const { return path_ + name; }

  template <typename... Text>
  Status Error(const char* name, const Text&... text) const {
    return ParamError(kInvalid, Param(name), text...);
  }

  Status Read(const char* name, std::string& out) const {
    const Json* value = Find(name);
    if (value == nullptr) return {};
    if (!value->is_string()) return Error(name, "must be a string");
    out = value->get<std::string>();
    return {};
  }

  Status Read(const char* name, bool& out) const {
    const Json* value = Find(name);
    if (value == nullptr) return {};
    if (!value->is_boolean()) return Error(name, "must be true or false");
    out = value->get<bool>();
    return {};
  }

  Status Read(const char* name, std::optional<double>& out) const {
    const Json* value = Find(name);
    if (value == nullptr) return {};
    if (!value->is_number()) return Error(name, "must be a number");
    out = value->get<double>();
    return {};
  }

  Status Read(const char* name, std::optional<int64_t>& out) const {
    const Json* value = Find(name);
    if (value == nullptr) return {};
    ASSIGN_OR_RETURN(out, Integer(name, *value));
    return {};
  }

  // 5 and 5.0, but not "5" or 5.5.
  StatusOr<int64_t> Integer(const char* name, const Json& value) const {
    if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return Error(name, "is too large");
    if (value.is_number_integer()) return value.get<int64_t>();
    const double real = value.is_number_float() ? value.get<double>() : 0.5;
    if (real != std::floor(real)) return Error(name, "must be an integer");
    if (std::abs(real) > 9e15) return Error(name, "is too large");  // not exact as a double
    return static_cast<int64_t>(real);
  }

 private:
  const Json& object_;
  const std::string path_;
};

StatusOr<std::string> ParseContent(const Fields& message) {
  const Json* content = message.Find("content");
  if (content == nullptr) return message.Error("content", "must not be null");
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array() || content->empty())
    return message.Error("content", "must be a string or a list of parts");
  std::string text;
  for (size_t i = 0; i < content->size(); ++i) {
    const std::string path = Concat(message.Param("content"), "[", i, "]");
    const Json& part = (*content)[i];
    if (!part.is_object()) return ParamError(kInvalid, path, "must be an object");
    const Fields fields(part, path + ".");
    std::string type, piece;
    RETURN_IF_ERROR(fields.Read("type", type));
    if (type != "text")
      return ParamError("unsupported_content", path, "only parts of type text are supported");
    if (fields.Find("text") == nullptr) return fields.Error("text", "is missing");
    RETURN_IF_ERROR(fields.Read("text", piece));
    text += piece;
  }
  return text;
}

StatusOr<std::vector<ChatMessage>> ParseMessages(const Fields& request) {
  const Json* messages = request.Find("messages");
  if (messages == nullptr || !messages->is_array()) return request.Error("messages", "must be a list");
  if (messages->size() > Request::kMaxMessages) {
    return request.Error("messages", messages->size(), " entries, limit ", Request::kMaxMessages);
  }
  std::vector<ChatMessage> out;
  for (size_t i = 0; i < messages->size(); ++i) {
    const std::string path = Concat("messages[", i, "]");
    if (!(*messages)[i].is_object()) return ParamError(kInvalid, path, "must be an object");
    const Fields message((*messages)[i], path + ".");
    for (const char* name : {"tool_calls", "function_call", "audio"}) {
      if (message.Find(name) != nullptr)
        return ParamError(kUnsupported, message.Param(name), "is not supported");
    }
    ChatMessage& next = out.emplace_back();
    RETURN_IF_ERROR(message.Read("role", next.role));
    if (next.role == "developer") next.role = "system";  // OpenAI's newer name for it
    ASSIGN_OR_RETURN(next.content, ParseContent(message));
  }
  return out;
}

Status CheckResponseFormat(const Fields& request) {
  const Json* format = request.Find("response_format");
  if (format == nullptr || (format->is_object() && format->value("type", Json()) == "text")) return {};
  return ParamError(kUnsupported, "response_format", "only {\"type\": \"text\"} is supported");
}

Status CheckChat(const Fields& request) {
  for (const char* name : kUnsupportedInChats) {
    if (request.Find(name) != nullptr) return ParamError(kUnsupported, name, "is not supported");
  }
  RETURN_IF_ERROR(CheckResponseFormat(request));
  if (const Json* choice = request.Find("tool_choice"); choice != nullptr && *choice != "none") {
    return ParamError(kUnsupported, "tool_choice", "tools are not supported");
  }
  if (const Json* modalities = request.Find("modalities");
      modalities != nullptr && *modalities != Json::array({"text"})) {
    return ParamError(kUnsupported, "modalities", "only [\"text\"] is supported");
  }
  if (const Json* store = request.Find("store"); store != nullptr && *store != false) {
    return ParamError(kUnsupported, "store", "answers are not stored");
  }
  if (const Json* tier = request.Find("service_tier");
      tier != nullptr && *tier != "auto" && *tier != "default") {
    return ParamError(kUnsupported, "service_tier", "only auto and default are supported");
  }
  if (const Json* echo = request.Find("echo"); echo != nullptr && *echo != false) {
    return ParamError(kUnsupported, "echo", "a chat's answer never begins with its prompt");
  }
  return {};
}

Status ParseMaxTokens(const Fields& request, RequestFields& out) {
  std::optional<int64_t> newer;
  RETURN_IF_ERROR(request.Read("max_tokens", out.max_tokens));
  RETURN_IF_ERROR(request.Read("max_completion_tokens", newer));
  if (!newer.has_value()) return {};
  if (out.max_tokens.value_or(*newer) != *newer) {
    return request.Error("max_completion_tokens", "contradicts max_tokens");
  }
  out.max_tokens = newer;
  return {};
}

Status ParseStop(const Fields& request, RequestFields& out) {
  const Json* stop = request.Find("stop");
  if (stop == nullptr) return {};
  if (stop->is_string()) {
    out.stop = {stop->get<std::string>()};
    return {};
  }
  if (!stop->is_array()) return request.Error("stop", "must be a string or a list of strings");
  for (const Json& entry : *stop) {
    if (!entry.is_string()) return request.Error("stop", "must be a string or a list of strings");
    out.stop.push_back(entry.get<std::string>());
  }
  return {};
}

Status ParseLogitBias(const Fields& request, RequestFields& out) {
  const Json* bias = request.Find("logit_bias");
  if (bias == nullptr) return {};
  if (!bias->is_object()) return request.Error("logit_bias", "must be an object of token id to bias");
  for (const auto& [key, value] : bias->items()) {
    int64_t token = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size()) {
      return request.Error("logit_bias", "keys must be token ids");
    }
    if (!value.is_number()) return request.Error("logit_bias", "values must be numbers");
    out.logit_bias.emplace_back(token, value.get<double>());
  }
  return {};
}

Status ParseSampling(const Fields& request, RequestFields& out) {
  RETURN_IF_ERROR(request.Read("temperature", out.temperature));
  RETURN_IF_ERROR(request.Read("top_p", out.top_p));
  RETURN_IF_ERROR(request.Read("min_p", out.min_p));
  RETURN_IF_ERROR(request.Read("top_k", out.top_k));
  RETURN_IF_ERROR(request.Read("repetition_penalty", out.repetition_penalty));
  RETURN_IF_ERROR(request.Read("presence_penalty", out.presence_penalty));
  RETURN_IF_ERROR(request.Read("frequency_penalty", out.frequency_penalty));
  if (const Json* seed = request.Find("seed"); seed != nullptr) {
    if (seed->is_number_unsigned()) {
      out.seed = seed->get<uint64_t>();
    } else {
      ASSIGN_OR_RETURN(const int64_t number, request.Integer("seed", *seed));
      if (number < 0) return request.Error("seed", "must not be negative, got ", number);
      out.seed = static_cast<uint64_t>(number);
    }
  }
  return ParseLogitBias(request, out);
}

Status ParseStreaming(const Fields& request, OpenAiRequest& out) {
  out.fields.is_streamed = false;
  RETURN_IF_ERROR(request.Read("stream", out.fields.is_streamed));
  const Json* options = request.Find("stream_options");
  if (options == nullptr) return {};
  if (!options->is_object()) return request.Error("stream_options", "must be an object");
  if (!out.fields.is_streamed) return request.Error("stream_options", "needs stream");
  return Fields(*options, "stream_options.").Read("include_usage", out.include_usage);
}

Status ParseLogprobs(const Fields& request, RequestFields& out) {
  RETURN_IF_ERROR(request.Read("logprobs", out.logprobs));
  std::optional<int64_t> top_logprobs;
  RETURN_IF_ERROR(request.Read("top_logprobs", top_logprobs));
  out.top_logprobs = top_logprobs.value_or(0);
  RETURN_IF_ERROR(request.Read("prompt_logprobs", out.prompt_logprobs));
  if (out.prompt_logprobs.has_value() && out.is_streamed) {
    return ParamError(kUnsupported, "prompt_logprobs", "is not supported with stream");
  }
  return {};
}

// The classic form: a number of alternatives, of the prompt's tokens too where the answer begins with it.
Status ParseCompletionLogprobs(const Fields& request, RequestFields& out) {
  std::optional<int64_t> top;
  RETURN_IF_ERROR(request.Read("logprobs", top));
  if (!top.has_value()) return {};
  if (*top < 0 || *top > Request::kMaxTopLogprobs) {
    return request.Error("logprobs", "must be in [0, ", Request::kMaxTopLogprobs, "], got ", *top);
  }
  out.logprobs = true;
  out.top_logprobs = *top;
  if (!out.echo) return {};
  if (out.is_streamed) {
    return ParamError(kUnsupported, "logprobs", "with echo and stream together is not supported");
  }
  if (out.choices.value_or(1) > 1) {  // each choice would repeat them
    return ParamError(kUnsupported, "logprobs", "with echo and n above 1 together is not supported");
  }
  out.prompt_logprobs = *top;
  return {};
}

Status CheckCompletion(const Fields& request) {
  if (const Json* suffix = request.Find("suffix"); suffix != nullptr && *suffix != "") {
    return ParamError(kUnsupported, "suffix", "is not supported");
  }
  for (const char* name : {"messages", "tools", "functions"}) {
    if (request.Find(name) != nullptr) return ParamError(kUnsupported, name, "is a field of chats");
  }
  for (const char* name : {"top_logprobs", "prompt_logprobs"}) {
    if (request.Find(name) != nullptr) {
      return ParamError(kUnsupported, name,
                        "is a field of chats; of a completion logprobs is a number, and with "
                        "echo of the prompt's tokens too");
    }
  }
  return CheckResponseFormat(request);
}

// Text, or token ids; either may be the only one of a list.
StatusOr<RequestInput> ParsePrompt(const Fields& request) {
  const Json* prompt = request.Find("prompt");
  if (prompt == nullptr) return request.Error("prompt", "is missing");
  if (prompt->is_array() && !prompt->empty() && !prompt->front().is_number()) {
    if (prompt->size() > 1) {
      return ParamError(kUnsupported, "prompt", prompt->size(), " prompts; one request has one prompt");
    }
    prompt = &prompt->front();
  }
  if (prompt->is_string()) return prompt->get<std::string>();
  if (!prompt->is_array()) return request.Error("prompt", "must be a string or a list of token ids");
  std::vector<TokenId> tokens;
  tokens.reserve(prompt->size());
  for (const Json& entry : *prompt) {
    const bool is_id = entry.is_number_unsigned() && entry.get<uint64_t>() <= INT32_MAX;
    if (!is_id) return request.Error("prompt", "must be a string or a list of token ids");
    tokens.push_back(entry.get<TokenId>());
  }
  return tokens;
}

// Extensions that vLLM has too.
Status ParseScheduling(const Fields& request, RequestFields& out) {
  std::optional<int64_t> priority;
  RETURN_IF_ERROR(request.Read("priority", priority));
  out.priority = priority.value_or(0);
  return request.Read("cache_salt", out.cache_salt);
}

// What chats and completions have alike.
Status ParseCommon(const Fields& request, OpenAiRequest& out) {
  RequestFields& fields = out.fields;
  RETURN_IF_ERROR(request.Read("model", fields.model));
  RETURN_IF_ERROR(ParseMaxTokens(request, fields));
  RETURN_IF_ERROR(ParseSampling(request, fields));
  RETURN_IF_ERROR(ParseStop(request, fields));
  RETURN_IF_ERROR(request.Read("n", fields.choices));
  RETURN_IF_ERROR(request.Read("ignore_eos", fields.ignore_eos));
  RETURN_IF_ERROR(ParseStreaming(request, out));
  return ParseScheduling(request, fields);
}

StatusOr<Json> ParseObject(std::string_view body) {
  ASSIGN_OR_RETURN(Json json, ParseJson(body));
  if (!json.is_object()) return WithReason(InvalidArgument("the body must be a JSON object"), "invalid_json");
  return json;
}

}  // namespace

StatusOr<OpenAiRequest> ParseOpenAiChat(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  const Fields request(json);
  OpenAiRequest out{.fields = {.api = ApiKind::kOpenAiChat}};
  RETURN_IF_ERROR(CheckChat(request));
  ASSIGN_OR_RETURN(out.fields.input, ParseMessages(request));
  RETURN_IF_ERROR(ParseCommon(request, out));
  RETURN_IF_ERROR(ParseLogprobs(request, out.fields));
  return out;
}

StatusOr<OpenAiRequest> ParseOpenAiCompletion(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  const Fields request(json);
  OpenAiRequest out{.fields = {.api = ApiKind::kOpenAiCompletion}};
  RETURN_IF_ERROR(CheckCompletion(request));
  ASSIGN_OR_RETURN(out.fields.input, ParsePrompt(request));
  RETURN_IF_ERROR(ParseCommon(request, out));
  RETURN_IF_ERROR(request.Read("best_of", out.fields.best_of));
  RETURN_IF_ERROR(request.Read("echo", out.fields.echo));
  RETURN_IF_ERROR(ParseCompletionLogprobs(request, out.fields));
  if (!out.fields.max_tokens.has_value()) out.fields.max_tokens = kCompletionTokens;
  return out;
}

StatusOr<double> ParseTimeoutHeader(std::string_view value) {
  double seconds = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seconds);
  if (error != std::errc() || end != value.data() + value.size() || !std::isfinite(seconds) || seconds <= 0) {
    return ParamError(kInvalid, "x-request-timeout-seconds", "must be a number above 0");
  }
  return seconds;
}

}  // namespace terrace
