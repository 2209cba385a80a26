#include "router/request/request.h"

#include <algorithm>

#include "router/request/param.h"
#include "router/request/tools.h"

namespace terrace {
namespace {

constexpr std::string_view kInvalid = "invalid_value";

// A number within [low, high], or in (low, high] when `above`.
Status CheckRange(std::string_view param, double value, double low, double high, bool above = false) {
  const bool fits = above ? value > low && value <= high : value >= low && value <= high;  // false for NaN
  if (fits) return {};
  return ParamError(kInvalid, param, "must be in ", above ? "(" : "[", low, ", ", high, "], got ", value);
}

Status CheckIntegerRange(std::string_view param, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return {};
  return ParamError(kInvalid, param, "must be in [", low, ", ", high, "], got ", value);
}

Status CheckCount(std::string_view param, size_t count, size_t limit) {
  if (count <= limit) return {};
  return ParamError(kInvalid, param, count, " entries, limit ", limit);
}

StatusOr<Sampling> MakeSampling(const RequestFields& fields) {
  struct Real {
    std::string_view param;
    const std::optional<double>& value;
    float& out;
    double low, high;
    bool above;
  };
  Sampling out;
  const Real reals[] = {
      {"temperature", fields.temperature, out.temperature, 0, 2, false},
      {"top_p", fields.top_p, out.top_p, 0, 1, true},
      {"min_p", fields.min_p, out.min_p, 0, 1, false},
      {"repetition_penalty", fields.repetition_penalty, out.repetition_penalty, 0, 10, true},
      {"presence_penalty", fields.presence_penalty, out.presence_penalty, -2, 2, false},
      {"frequency_penalty", fields.frequency_penalty, out.frequency_penalty, -2, 2, false},
  };
  for (const Real& real : reals) {
    if (!real.value.has_value()) continue;
    RETURN_IF_ERROR(CheckRange(real.param, *real.value, real.low, real.high, real.above));
    real.out = static_cast<float>(*real.value);
    // A positive double may round to a float of zero.
    RETURN_IF_ERROR(CheckRange(real.param, real.out, real.low, real.high, real.above));
  }
  if (fields.top_k.has_value()) {
    RETURN_IF_ERROR(CheckIntegerRange("top_k", *fields.top_k, 0, INT32_MAX));
    out.top_k = static_cast<int32_t>(*fields.top_k);
  }
  RETURN_IF_ERROR(CheckCount("logit_bias", fields.logit_bias.size(), Request::kMaxLogitBias));
  for (const auto& [token, bias] : fields.logit_bias) {
    if (token < 0 || token > INT32_MAX)
      return ParamError(kInvalid, "logit_bias", "token ", token, " does not exist");
    RETURN_IF_ERROR(CheckRange("logit_bias", bias, -100, 100));
    out.logit_bias[static_cast<TokenId>(token)] = static_cast<float>(bias);
  }
  out.seed = fields.seed;
  return out;
}

Status CheckChat(const std::vector<ChatMessage>& messages) {
  if (messages.empty()) return ParamError(kInvalid, "messages", "must not be empty");
  RETURN_IF_ERROR(CheckCount("messages", messages.size(), Request::kMaxMessages));
  size_t arguments_bytes = 0;
  for (const ChatMessage& message : messages) {
    for (const ToolCall& call : message.tool_calls) arguments_bytes += call.arguments.size();
  }
  if (arguments_bytes > kMaxArgumentsBytes) {
    return ParamError(kInvalid, "messages", "the arguments of tool calls have ", arguments_bytes,
                      " bytes together, limit ", kMaxArgumentsBytes);
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    const std::string path = Concat("messages[", i, "]");
    if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
      return ParamError(kInvalid, path + ".role", "must be system, user, assistant or tool");
    }
    if (messages[i].name.size() > Request::kMaxNameBytes) {
      return ParamError(kInvalid, path + ".name", messages[i].name.size(), " bytes, limit ",
                        Request::kMaxNameBytes);
    }
    RETURN_IF_ERROR(CheckToolCalls(messages[i], path));
  }
  return {};
}

Status CheckInput(const RequestFields& fields) {
  if (const auto* chat = std::get_if<std::vector<ChatMessage>>(&fields.input)) return CheckChat(*chat);
  if (const auto* prompt = std::get_if<std::string>(&fields.input)) {
    return prompt->empty() ? ParamError(kInvalid, "prompt", "must not be empty") : Status();
  }
  const auto& tokens = std::get<std::vector<TokenId>>(fields.input);
  const char* param = TokensParam(fields.api);
  if (tokens.empty()) return ParamError(kInvalid, param, "must not be empty");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0) return ParamError(kInvalid, Concat(param, "[", i, "]"), "no such token: ", tokens[i]);
  }
  return {};
}

Status CheckNames(const RequestFields& fields) {
  if (fields.model.size() > Request::kMaxModelBytes) {
    return ParamError(kInvalid, "model", fields.model.size(), " bytes, limit ", Request::kMaxModelBytes);
  }
  if (fields.tier.size() > Request::kMaxModelBytes) {
    return ParamError(kInvalid, TierParam(fields.api), fields.tier.size(), " bytes, limit ",
                      Request::kMaxModelBytes);
  }
  const auto is_plain = [](char c) { return c > ' ' && c <= '~'; };
  if (fields.request_id.empty() || fields.request_id.size() > Request::kMaxRequestIdBytes ||
      !std::all_of(fields.request_id.begin(), fields.request_id.end(), is_plain)) {
    return ParamError(kInvalid, "request_id", "must be 1 to ", Request::kMaxRequestIdBytes,
                      " printable ASCII characters without blanks");
  }
  return {};
}

Status CheckStops(const RequestFields& fields) {
  RETURN_IF_ERROR(CheckCount("stop", fields.stop.size(), Request::kMaxStops));
  for (const std::string& stop : fields.stop) {
    if (stop.empty() || stop.size() > Request::kMaxStopBytes) {
      return ParamError(kInvalid, "stop", "each must be 1 to ", Request::kMaxStopBytes, " bytes, got ",
                        stop.size());
    }
  }
  RETURN_IF_ERROR(CheckCount("stop_tokens", fields.stop_tokens.size(), Request::kMaxStopTokens));
  for (const TokenId token : fields.stop_tokens) {
    if (token < 0) return ParamError(kInvalid, "stop_tokens", "no such token: ", token);
  }
  return {};
}

Status CheckChoices(const RequestFields& fields) {
  const int64_t choices = fields.choices.value_or(1);
  RETURN_IF_ERROR(CheckIntegerRange("n", choices, 1, Request::kMaxChoices));
  return CheckIntegerRange("best_of", fields.best_of.value_or(choices), choices, Request::kMaxChoices);
}

Status CheckLogprobs(const RequestFields& fields) {
  RETURN_IF_ERROR(CheckIntegerRange("top_logprobs", fields.top_logprobs, 0, Request::kMaxTopLogprobs));
  if (fields.top_logprobs > 0 && !fields.logprobs)
    return ParamError(kInvalid, "top_logprobs", "needs logprobs");
  return CheckIntegerRange("prompt_logprobs", fields.prompt_logprobs.value_or(0), 0,
                           Request::kMaxTopLogprobs);
}

// 0 is for a prompt whose scores are wanted, once.
Status CheckMaxTokens(const RequestFields& fields) {
  const bool is_scored = fields.prompt_logprobs.has_value() && fields.choices.value_or(1) == 1 &&
                         fields.best_of.value_or(1) == 1;
  return CheckIntegerRange("max_tokens", fields.max_tokens.value_or(1), is_scored ? 0 : 1,
                           Request::kMaxMaxTokens);
}

Status CheckScheduling(const RequestFields& fields) {
  const int64_t highest = std::min(Request::kMaxPriority, fields.tenant->max_priority);
  RETURN_IF_ERROR(CheckIntegerRange("priority", fields.priority, -Request::kMaxPriority, highest));
  if (fields.cache_salt.size() <= Request::kMaxCacheSaltBytes) return {};
  return ParamError(kInvalid, "cache_salt", fields.cache_salt.size(), " bytes, limit ",
                    Request::kMaxCacheSaltBytes);
}

}  // namespace

std::string_view ApiName(ApiKind api) {
  switch (api) {
    case ApiKind::kOpenAiCompletion:
      return "openai_completion";
    case ApiKind::kOpenAiChat:
      return "openai_chat";
    case ApiKind::kGenerate:
      return "generate";
    case ApiKind::kScore:
      return "score";
    case ApiKind::kTokenize:
      return "tokenize";
    case ApiKind::kOther:  // models, what does not exist
      return "other";
  }
  return "";
}

size_t TextBytes(const Request& request) {
  if (const auto* prompt = std::get_if<std::string>(&request.input())) return prompt->size();
  const auto* chat = std::get_if<std::vector<ChatMessage>>(&request.input());
  if (chat == nullptr) return 0;
  size_t bytes = 0;
  for (const ChatMessage& message : *chat) {
    bytes += message.content.size();
    for (const ToolCall& call : message.tool_calls) bytes += call.name.size() + call.arguments.size();
  }
  for (const Tool& tool : request.tools())
    bytes += tool.name.size() + tool.description.size() + tool.parameters.size();
  return bytes;
}

StatusOr<RequestPtr> Request::Make(RequestFields fields) {
  RETURN_IF_ERROR(CheckNames(fields));
  RETURN_IF_ERROR(CheckRange(MaxUsdParam(fields.api), fields.max_usd.value_or(0), 0, Request::kMaxMaxUsd));
  RETURN_IF_ERROR(
      CheckRange(MaxSecondsParam(fields.api), fields.max_seconds.value_or(0), 0, Request::kMaxMaxSeconds));
  RETURN_IF_ERROR(CheckIntegerRange(SpeculationParam(fields.api), fields.speculation_max_tokens.value_or(0),
                                    0, Request::kMaxSpeculationTokens));
  RETURN_IF_ERROR(CheckInput(fields));
  RETURN_IF_ERROR(CheckMaxTokens(fields));
  RETURN_IF_ERROR(CheckTools(fields.tools));
  if (!fields.may_call_tools) fields.tools.clear();
  if (!fields.tools.empty() && !std::holds_alternative<std::vector<ChatMessage>>(fields.input))
    return ParamError(kInvalid, "tools", "needs a chat");
  RETURN_IF_ERROR(CheckStops(fields));
  RETURN_IF_ERROR(CheckLogprobs(fields));
  RETURN_IF_ERROR(CheckChoices(fields));
  RETURN_IF_ERROR(CheckScheduling(fields));
  ASSIGN_OR_RETURN(Sampling sampling, MakeSampling(fields));
  fields.cache_salt = fields.tenant->CacheSalt(fields.cache_salt);
  return RequestPtr(new Request(std::move(fields), std::move(sampling)));
}

}  // namespace terrace
