#include "router/api/openai_parse.h"

#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "router/api/openai_fields.h"
#include "router/api/openai_messages.h"

namespace terrace {
namespace {

// Fields of the OpenAI API, or of servers like this one, that would change the answer and are not served;
// null is as good as absent, and so is what kNeutral says, or false where it says nothing.
constexpr const char* kUnsupportedInBoth[] = {"prompt_embeds",
                                              "min_tokens",
                                              "bad_words",
                                              "allowed_token_ids",
                                              "use_beam_search",
                                              "length_penalty",
                                              "logits_processors",
                                              "truncate_prompt_tokens",
                                              "include_stop_str_in_output",
                                              "guided_json",
                                              "guided_regex",
                                              "guided_choice",
                                              "guided_grammar",
                                              "structured_outputs",
                                              "grammar",
                                              "regex",
                                              "ebnf",
                                              "json_schema",
                                              "return_token_ids",
                                              "return_tokens_as_token_ids",
                                              "skip_special_tokens",
                                              "spaces_between_special_tokens",
                                              "kv_transfer_params",
                                              "mm_processor_kwargs",
                                              "lora_request"};
const std::map<std::string, Json> kNeutral = {{"min_tokens", 0},
                                              {"length_penalty", 1},
                                              {"skip_special_tokens", true},
                                              {"spaces_between_special_tokens", true}};
constexpr const char* kUnsupportedInChats[] = {"functions",
                                               "function_call",
                                               "audio",
                                               "prediction",
                                               "web_search_options",
                                               "best_of",
                                               "echo",
                                               "reasoning_effort",
                                               "verbosity",
                                               "chat_template",
                                               "chat_template_kwargs",
                                               "documents",
                                               "continue_final_message"};
constexpr int64_t kCompletionTokens = 16;  // of a completion without max_tokens: OpenAI's default
constexpr size_t kMaxMetadata = 16;
constexpr size_t kMaxPrompts = 64;

// Absent when `text` is anything else than a finite number.
std::optional<double> ParseNumber(std::string_view text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(number)) return {};
  return number;
}

Status CheckResponseFormat(const Fields& request) {
  const Json* format = request.Find("response_format");
  if (format == nullptr || (format->is_object() && format->value("type", Json()) == "text")) return {};
  return request.Unsupported("response_format", "only {\"type\": \"text\"} is supported");
}

// Labels for the client's own use: they change no answer.
Status CheckLabels(const Fields& request) {
  std::string label;
  for (const char* name : {"user", "safety_identifier", "prompt_cache_key"})
    RETURN_IF_ERROR(request.Read(name, label));
  const Json* metadata = request.Find("metadata");
  if (metadata == nullptr) return {};
  if (!metadata->is_object() || metadata->size() > kMaxMetadata)
    return request.Error("metadata", "must be an object of at most ", kMaxMetadata, " strings");
  for (const auto& [key, value] : metadata->items()) {
    if (!value.is_string()) return request.Error("metadata", "its values must be strings");
  }
  return {};
}

Status CheckCommon(const Fields& request) {
  RETURN_IF_ERROR(request.RefuseSet(kUnsupportedInBoth, kNeutral));
  RETURN_IF_ERROR(CheckResponseFormat(request));
  if (const Json* tier = request.Find("service_tier");
      tier != nullptr && *tier != "auto" && *tier != "default") {
    return request.Unsupported("service_tier", "only auto and default are supported");
  }
  return CheckLabels(request);
}

Status CheckChat(const Fields& request) {
  RETURN_IF_ERROR(request.RefuseSet(kUnsupportedInChats, kNeutral));
  if (const Json* modalities = request.Find("modalities");
      modalities != nullptr && *modalities != Json::array({"text"})) {
    return request.Unsupported("modalities", "only [\"text\"] is supported");
  }
  if (const Json* store = request.Find("store"); store != nullptr && *store != false) {
    return request.Unsupported("store", "answers are not stored");
  }
  if (const Json* kept = request.Find("prompt_cache_retention");
      kept != nullptr && *kept != "in_memory" && *kept != "in-memory") {
    return request.Unsupported("prompt_cache_retention", "only in_memory is supported");
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
  const Fields fields(*options, "stream_options.");
  bool is_obfuscated = false;
  RETURN_IF_ERROR(fields.Read("include_obfuscation", is_obfuscated));
  if (is_obfuscated) return fields.Unsupported("include_obfuscation", "events are not padded");
  bool is_continuous = false;
  RETURN_IF_ERROR(fields.Read("continuous_usage_stats", is_continuous));
  if (is_continuous) return fields.Unsupported("continuous_usage_stats", "usage is in the last chunk alone");
  return fields.Read("include_usage", out.include_usage);
}

Status ParseLogprobs(const Fields& request, RequestFields& out) {
  RETURN_IF_ERROR(request.Read("logprobs", out.logprobs));
  std::optional<int64_t> top_logprobs;
  RETURN_IF_ERROR(request.Read("top_logprobs", top_logprobs));
  out.top_logprobs = top_logprobs.value_or(0);
  RETURN_IF_ERROR(request.Read("prompt_logprobs", out.prompt_logprobs));
  if (out.prompt_logprobs.has_value() && out.is_streamed) {
    return request.Unsupported("prompt_logprobs", "is not supported with stream");
  }
  return {};
}

// The classic form: a number of alternatives, of the prompt's tokens too where the answer begins with it.
Status ParseCompletionLogprobs(const Fields& request, RequestFields& out) {
  std::optional<int64_t> top;
  RETURN_IF_ERROR(request.Read("logprobs", top));
  const bool is_prompt_only = out.max_tokens == 0;
  if (is_prompt_only && !out.echo) return request.Error("max_tokens", "0 needs echo");
  if (!top.has_value() && !is_prompt_only) return {};
  if (top.has_value() && (*top < 0 || *top > Request::kMaxTopLogprobs)) {
    return request.Error("logprobs", "must be in [0, ", Request::kMaxTopLogprobs, "], got ", *top);
  }
  out.logprobs = top.has_value();
  out.top_logprobs = top.value_or(0);
  if (!out.echo) return {};
  const char* name = is_prompt_only ? "max_tokens" : "logprobs";
  const char* what = is_prompt_only ? "0" : "with echo";
  if (out.is_streamed) return request.Unsupported(name, what, " and stream together is not supported");
  if (out.choices.value_or(1) > 1) {  // each choice would repeat them
    return request.Unsupported(name, what, " and n above 1 together is not supported");
  }
  out.prompt_logprobs = out.top_logprobs;
  return {};
}

Status CheckCompletion(const Fields& request) {
  if (const Json* suffix = request.Find("suffix"); suffix != nullptr && *suffix != "") {
    return request.Unsupported("suffix", "is not supported");
  }
  for (const char* name : {"messages", "tools", "tool_choice", "functions"}) {
    if (request.Find(name) != nullptr) return request.Unsupported(name, "is a field of chats");
  }
  for (const char* name : {"top_logprobs", "prompt_logprobs"}) {
    if (request.Find(name) != nullptr) {
      return request.Unsupported(name,
                                 "is a field of chats; of a completion logprobs is a number, and with "
                                 "echo of the prompt's tokens too");
    }
  }
  return {};
}

// Text, or token ids.
StatusOr<RequestInput> ParsePrompt(const Fields& request, const Json& prompt) {
  if (prompt.is_string()) return prompt.get<std::string>();
  return request.Tokens("prompt", prompt,
                        "a string or a list of token ids, or a list of strings or of such lists");
}

// One, or a list of them.
Status ParsePrompts(const Fields& request, OpenAiRequest& out) {
  const Json* prompt = request.Find("prompt");
  if (prompt == nullptr) return request.Error("prompt", "is missing");
  const bool is_list = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
  const size_t count = is_list ? prompt->size() : 1;
  if (count > kMaxPrompts) return request.Error("prompt", count, " prompts, limit ", kMaxPrompts);
  ASSIGN_OR_RETURN(out.fields.input, ParsePrompt(request, is_list ? prompt->front() : *prompt));
  for (size_t i = 1; i < count; ++i) {
    ASSIGN_OR_RETURN(RequestInput next, ParsePrompt(request, (*prompt)[i]));
    if (next.index() != out.fields.input.index())
      return request.Error("prompt", "must be texts alone, or token ids alone");
    out.more_prompts.push_back(std::move(next));
  }
  return {};
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
  RETURN_IF_ERROR(CheckCommon(request));
  RETURN_IF_ERROR(request.Read("model", fields.model));
  RETURN_IF_ERROR(ParseMaxTokens(request, fields));
  RETURN_IF_ERROR(ParseSampling(request, fields));
  RETURN_IF_ERROR(ParseStop(request, fields));
  RETURN_IF_ERROR(request.Read("n", fields.choices));
  RETURN_IF_ERROR(request.Read("ignore_eos", fields.ignore_eos));
  if (const Json* tokens = request.Find("stop_token_ids"); tokens != nullptr) {
    ASSIGN_OR_RETURN(fields.stop_tokens, request.Tokens("stop_token_ids", *tokens, "a list of token ids"));
  }
  RETURN_IF_ERROR(ParseStreaming(request, out));
  return ParseScheduling(request, fields);
}

}  // namespace

StatusOr<OpenAiRequest> ParseOpenAiChat(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseBody(body));
  const Fields request(json);
  OpenAiRequest out{.fields = {.api = ApiKind::kOpenAiChat}};
  RETURN_IF_ERROR(CheckChat(request));
  RETURN_IF_ERROR(CheckSpecialTokens(request, /*is_chat=*/true));
  ASSIGN_OR_RETURN(out.fields.input, ParseMessages(request));
  RETURN_IF_ERROR(ParseTools(request, body, out.fields));
  RETURN_IF_ERROR(request.Read("add_generation_prompt", out.fields.add_generation_prompt));
  RETURN_IF_ERROR(ParseCommon(request, out));
  RETURN_IF_ERROR(ParseLogprobs(request, out.fields));
  return out;
}

StatusOr<OpenAiRequest> ParseOpenAiCompletion(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseBody(body));
  const Fields request(json);
  OpenAiRequest out{.fields = {.api = ApiKind::kOpenAiCompletion}};
  RETURN_IF_ERROR(CheckCompletion(request));
  RETURN_IF_ERROR(ParsePrompts(request, out));
  const bool is_text =
      std::holds_alternative<std::string>(out.fields.input);  // else they are as they are sent
  if (is_text) RETURN_IF_ERROR(CheckSpecialTokens(request, /*is_chat=*/false));
  RETURN_IF_ERROR(ParseCommon(request, out));
  RETURN_IF_ERROR(request.Read("best_of", out.fields.best_of));
  RETURN_IF_ERROR(request.Read("echo", out.fields.echo));
  RETURN_IF_ERROR(ParseCompletionLogprobs(request, out.fields));
  if (!out.fields.max_tokens.has_value()) out.fields.max_tokens = kCompletionTokens;
  return out;
}

StatusOr<double> ParseTimeoutHeader(std::string_view value) {
  const auto seconds = ParseNumber(value);
  if (seconds.has_value() && *seconds > 0) return *seconds;
  return ParamError("invalid_value", "x-request-timeout-seconds", "must be a number above 0");
}

StatusOr<double> ParseNumberHeader(std::string_view name, std::string_view value) {
  if (const auto number = ParseNumber(value); number.has_value()) return *number;
  return ParamError("invalid_value", name, "must be a number");
}

StatusOr<int64_t> ParseSpeculationHeader(std::string_view value) {
  int64_t tokens = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), tokens);
  if (error == std::errc() && end == value.data() + value.size()) return tokens;
  return ParamError("invalid_value", "x-terrace-speculation-max-tokens", "must be a whole number");
}

}  // namespace terrace
