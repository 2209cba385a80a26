// One client request, validated. A Request is made only by Request::Make from the RequestFields that an API
// parsed, is immutable and shared by every part that works on it. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/byte_budget.h"
#include "base/clock.h"
#include "base/status.h"
#include "router/request/tenant.h"
#include "router/request/trace_context.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace terrace {

enum class ApiKind : uint8_t { kOpenAiChat, kOpenAiCompletion, kGenerate, kScore, kTokenize, kOther };
// "openai_chat", "openai_completion", "generate", "score", "tokenize" (and back), "other": metrics and logs.
std::string_view ApiName(ApiKind api);
// The field that holds a prompt of token ids.
inline const char* TokensParam(ApiKind api) {
  if (api == ApiKind::kTokenize) return "tokens";
  return api == ApiKind::kOpenAiCompletion ? "prompt" : "prompt_tokens";
}

// What chooses a tier, and what limits the price, the time and the workers' drafts: fields, or headers of
// OpenAI's requests.
inline bool HasHeaders(ApiKind api) {
  return api == ApiKind::kOpenAiChat || api == ApiKind::kOpenAiCompletion;
}
inline const char* TierParam(ApiKind api) { return HasHeaders(api) ? "x-terrace-tier" : "tier"; }
inline const char* MaxUsdParam(ApiKind api) { return HasHeaders(api) ? "x-terrace-max-usd" : "max_usd"; }
inline const char* MaxSecondsParam(ApiKind api) {
  return HasHeaders(api) ? "x-terrace-max-seconds" : "max_seconds";
}
inline const char* SpeculationParam(ApiKind api) {
  return HasHeaders(api) ? "x-terrace-speculation-max-tokens" : "speculation_max_tokens";
}

// Plain text to continue, a conversation to answer, or tokens to continue.
using RequestInput = std::variant<std::string, std::vector<ChatMessage>, std::vector<TokenId>>;

// How the next token is chosen; ranges in proto/terrace/v1/sampling.proto.
struct Sampling {
  float temperature = 1;  // 0 is greedy
  int32_t top_k = 0;      // 0: off
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::map<TokenId, float> logit_bias = {};
  std::optional<uint64_t> seed = {};  // absent: drawn by the dispatcher
};

// What a client wrote, in types wide enough to hold what is out of range. Absent: the default.
struct RequestFields {
  ApiKind api = ApiKind::kGenerate;
  std::string request_id = {};
  std::string model = {};                  // "": the configured default
  std::string tier = {};                   // of the model's, to answer; "": as its policy says
  std::optional<double> max_usd = {};      // that the request may cost; absent: as its policy says
  std::optional<double> max_seconds = {};  // that its answer may be expected to take; absent: the same
  // That a worker may draft itself in a step; 0: none; absent: as it is configured.
  std::optional<int64_t> speculation_max_tokens = {};
  RequestInput input = {};
  std::optional<int64_t> max_tokens = {};  // absent: as many as the context holds; 0: see is_prompt_only
  std::optional<double> temperature = {}, top_p = {}, min_p = {}, repetition_penalty = {},
                        presence_penalty = {}, frequency_penalty = {};
  std::optional<int64_t> top_k = {};
  std::optional<uint64_t> seed = {};
  std::vector<std::pair<int64_t, double>> logit_bias = {};
  std::vector<std::string> stop = {};
  std::vector<int32_t> stop_tokens = {};
  bool logprobs = false;
  int64_t top_logprobs = 0;
  bool ignore_eos = false;
  std::optional<int64_t> choices = {};          // answers to send; absent: 1
  std::optional<int64_t> best_of = {};          // answers to draw; absent: as many as are sent
  bool echo = false;                            // answers begin with the prompt
  std::optional<int64_t> prompt_logprobs = {};  // of the prompt's tokens, with this many alternatives
  std::vector<Tool> tools = {};
  bool may_call_tools = true;         // else the tools are checked and forgotten
  bool parallel_tool_calls = true;    // else one call ends an answer
  bool add_generation_prompt = true;  // a chat's prompt ends with the beginning of an answer
  int64_t priority = 0;
  std::string cache_salt = {};  // the caller's
  TenantPtr tenant = DefaultTenant();
  TraceContext trace = {};
  bool is_http = false;   // else it came over gRPC
  std::string peer = {};  // the address that it came from, for logs
  bool is_streamed = true;
  MonoTime arrival = {};
  MonoTime deadline = {};
  std::shared_ptr<const ByteLease> memory = {};  // for the input, as long as the request is there; null: none
};

class Request {
 public:
  static constexpr size_t kMaxModelBytes = 256, kMaxRequestIdBytes = 128, kMaxMessages = 2048;
  static constexpr size_t kMaxStops = 16, kMaxStopBytes = 256, kMaxStopTokens = 64, kMaxLogitBias = 1024;
  static constexpr size_t kMaxCacheSaltBytes = 256, kMaxNameBytes = 64;
  static constexpr int64_t kMaxTopLogprobs = 20, kMaxMaxTokens = 1 << 30;
  static constexpr int64_t kMaxChoices = 16, kMaxPriority = 100;
  static constexpr int64_t kMaxSpeculationTokens = 64;
  static constexpr double kMaxMaxUsd = 1e6, kMaxMaxSeconds = 86'400;

  // INVALID_ARGUMENT with a reason (invalid_value, unless said in docs/errors.md) and the parameter.
  static StatusOr<std::shared_ptr<const Request>> Make(RequestFields fields);

  ApiKind api() const { return fields_.api; }
  const std::string& request_id() const { return fields_.request_id; }
  const std::string& model() const { return fields_.model; }
  const std::string& tier() const { return fields_.tier; }
  const std::optional<double>& max_usd() const { return fields_.max_usd; }
  const std::optional<double>& max_seconds() const { return fields_.max_seconds; }
  bool has_limits() const { return max_usd().has_value() || max_seconds().has_value(); }  // of its own
  std::optional<uint32_t> speculation_max_tokens() const { return fields_.speculation_max_tokens; }
  const RequestInput& input() const { return fields_.input; }
  uint32_t max_tokens() const {
    return static_cast<uint32_t>(fields_.max_tokens.value_or(0));
  }  // 0: what fits, unless is_prompt_only
  // No token is drawn: the prompt's log-probabilities are wanted, and perhaps its echo.
  bool is_prompt_only() const { return fields_.api == ApiKind::kScore || fields_.max_tokens == 0; }
  const Sampling& sampling() const { return sampling_; }
  const std::vector<std::string>& stop() const { return fields_.stop; }
  const std::vector<TokenId>& stop_tokens() const { return fields_.stop_tokens; }
  bool logprobs() const { return fields_.logprobs; }
  uint32_t top_logprobs() const { return static_cast<uint32_t>(fields_.top_logprobs); }
  bool ignore_eos() const { return fields_.ignore_eos; }
  uint32_t choices() const { return static_cast<uint32_t>(fields_.choices.value_or(1)); }  // to be sent
  uint32_t draws() const { return static_cast<uint32_t>(fields_.best_of.value_or(choices())); }
  // More are drawn than sent: the best are known only when all are over.
  bool is_ranked() const { return draws() > choices(); }
  bool echo() const { return fields_.echo; }
  std::optional<uint32_t> prompt_logprobs() const { return fields_.prompt_logprobs; }
  const std::vector<Tool>& tools() const { return fields_.tools; }
  size_t max_tool_calls() const { return fields_.parallel_tool_calls ? SIZE_MAX : 1; }
  bool add_generation_prompt() const { return fields_.add_generation_prompt; }
  int32_t priority() const { return static_cast<int32_t>(fields_.priority); }
  const std::string& cache_salt() const { return fields_.cache_salt; }  // the tenant's
  const TenantPtr& tenant() const { return fields_.tenant; }
  const TraceContext& trace() const { return fields_.trace; }
  bool is_http() const { return fields_.is_http; }
  const std::string& peer() const { return fields_.peer; }
  bool is_streamed() const { return fields_.is_streamed; }
  MonoTime arrival() const { return fields_.arrival; }
  MonoTime deadline() const { return fields_.deadline; }

 private:
  Request(RequestFields fields, Sampling sampling)
      : fields_(std::move(fields)), sampling_(std::move(sampling)) {}
  const RequestFields fields_;
  const Sampling sampling_;
};

using RequestPtr = std::shared_ptr<const Request>;

// Of a prompt, or a conversation with its tools: what has to be tokenized. 0 of token ids.
size_t TextBytes(const Request& request);

}  // namespace terrace
