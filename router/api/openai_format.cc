#include "router/api/openai_format.h"

#include <utility>

#include "router/request/param.h"

namespace terrace {
namespace {

Json UsageJson(const TokenUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

Json TerraceJson(const AnswerSummary& summary) {
  Json attempts = Json::array();
  for (const AnswerAttempt& attempt : summary.attempts) {
    attempts.push_back({{"choice", attempt.choice},
                        {"tier", attempt.tier},
                        {"replica", attempt.replica},
                        {"mean_logprob", attempt.mean_logprob},
                        {"threshold", attempt.threshold.has_value() ? Json(*attempt.threshold) : Json()},
                        {"accepted", attempt.accepted},
                        {"prompt_tokens", attempt.usage.prompt_tokens},
                        {"completion_tokens", attempt.usage.completion_tokens},
                        {"price_usd", attempt.price_usd}});
  }
  return {{"tier", summary.tier},
          {"attempts", std::move(attempts)},
          {"price_usd", summary.price_usd},
          {"time_to_first_token_seconds", summary.time_to_first_token_seconds}};
}

Json TokenJson(const std::string& bytes, float logprob) {
  Json numbers = Json::array();
  for (const char c : bytes) numbers.push_back(static_cast<unsigned char>(c));
  return {{"token", bytes}, {"logprob", logprob}, {"bytes", std::move(numbers)}};
}

// Without end tokens, which are no part of the text.
Json LogprobsJson(const std::vector<AnswerToken>& tokens) {
  Json content = Json::array();
  for (const AnswerToken& token : tokens) {
    if (token.is_control) continue;
    Json entry = TokenJson(token.bytes, token.logprob);
    Json& top = entry["top_logprobs"] = Json::array();
    for (const RankedToken& ranked : token.top) top.push_back(TokenJson(ranked.bytes, ranked.logprob));
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json PromptLogprobsJson(const std::vector<AnswerToken>& tokens) {
  const auto token_json = [](TokenId id, const std::string& bytes, float logprob) {
    Json entry = TokenJson(bytes, logprob);
    entry["token_id"] = id;
    return entry;
  };
  Json out = {nullptr};
  for (size_t i = 1; i < tokens.size(); ++i) {
    Json entry = token_json(tokens[i].id, tokens[i].bytes, tokens[i].logprob);
    Json& top = entry["top_logprobs"] = Json::array();
    for (const RankedToken& ranked : tokens[i].top)
      top.push_back(token_json(ranked.id, ranked.bytes, ranked.logprob));
    out.push_back(std::move(entry));
  }
  return out;
}

Json HeadJson(const CompletionHead& head, const char* object) {
  return {{"id", head.id}, {"object", object}, {"created", head.created_unix_seconds}, {"model", head.model}};
}

Json Chunk(const CompletionHead& head, uint32_t choice, Json delta, Json logprobs, Json finish_reason) {
  Json out = HeadJson(head, "chat.completion.chunk");
  out["choices"] = {{{"index", choice},
                     {"delta", std::move(delta)},
                     {"logprobs", std::move(logprobs)},
                     {"finish_reason", std::move(finish_reason)}}};
  if (head.include_usage) out["usage"] = nullptr;
  return out;
}

Json ErrorBody(std::string_view message, bool is_clients, const std::string& param, std::string_view code) {
  return {{"error",
           {{"message", message},
            {"type", is_clients ? "invalid_request_error" : "server_error"},
            {"param", param.empty() ? Json() : Json(param)},
            {"code", code}}}};
}

std::string_view CodeOf(int status) {
  switch (status) {
    case 400:
      return "bad_request";
    case 404:
      return "unknown_url";
    case 405:
      return "method_not_allowed";
    case 408:
      return "slow_client";
    case 413:
      return "body_too_large";
    case 415:
      return "unsupported_media_type";
    case 431:
      return "headers_too_large";
    default:
      return "internal";
  }
}

}  // namespace

Json CompletionJson(const CompletionHead& head, const std::vector<WholeChoice>& choices,
                    const std::vector<AnswerToken>& prompt_tokens, const AnswerSummary& total) {
  Json out = HeadJson(head, "chat.completion");
  out["choices"] = Json::array();
  for (const auto& [answer, end] : choices) {
    out["choices"].push_back(
        {{"index", out["choices"].size()},
         {"message", {{"role", "assistant"}, {"content", answer.text}, {"refusal", nullptr}}},
         {"logprobs", head.logprobs ? LogprobsJson(answer.tokens) : Json()},
         {"finish_reason", AnswerEndName(end)}});
  }
  if (!prompt_tokens.empty()) out["prompt_logprobs"] = PromptLogprobsJson(prompt_tokens);
  out["usage"] = UsageJson(total.usage);
  out["terrace"] = TerraceJson(total);
  return out;
}

Json FirstChunk(const CompletionHead& head, uint32_t choice) {
  return Chunk(head, choice, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr);
}

Json PieceChunk(const CompletionHead& head, const AnswerPiece& piece) {
  return Chunk(head, piece.choice, {{"content", piece.text}},
               head.logprobs ? LogprobsJson(piece.tokens) : Json(), nullptr);
}

Json LastChunk(const CompletionHead& head, uint32_t choice, const AnswerSummary& summary) {
  Json out = Chunk(head, choice, Json::object(), nullptr, AnswerEndName(summary.end));
  out["terrace"] = TerraceJson(summary);
  return out;
}

Json UsageChunk(const CompletionHead& head, const AnswerSummary& total) {
  Json out = HeadJson(head, "chat.completion.chunk");
  out["choices"] = Json::array();
  out["usage"] = UsageJson(total.usage);
  return out;
}

Json ModelJson(const ModelInfo& model, int64_t created_unix_seconds) {
  Json terrace = {{"is_policy", model.is_policy},
                  {"ready", model.is_ready},
                  {"context_length", model.context_length},
                  {"parameters", model.parameters},
                  {"usd_per_million_prompt_tokens", model.price.usd_per_million_prompt_tokens},
                  {"usd_per_million_completion_tokens", model.price.usd_per_million_completion_tokens}};
  if (model.is_policy) terrace["tiers"] = model.tiers;
  return {{"id", model.id},
          {"object", "model"},
          {"created", created_unix_seconds},
          {"owned_by", "terrace"},
          {"terrace", std::move(terrace)}};
}

Json ErrorJson(const Status& error) {
  const std::string reason = Reason(error);
  const int status = HttpStatusOf(error);
  return ErrorBody(Message(error), status < 500, Param(error), reason.empty() ? CodeOf(status) : reason);
}

int HttpStatusOf(const Status& error) {
  switch (error.code()) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kFailedPrecondition:
    case StatusCode::kOutOfRange:
      return 400;
    case StatusCode::kNotFound:
      return 404;
    case StatusCode::kCancelled:
      return 499;
    case StatusCode::kUnimplemented:
      return 501;
    case StatusCode::kResourceExhausted:
    case StatusCode::kUnavailable:
      return 503;
    case StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string HttpErrorBody(int status, std::string_view message) {
  return ToJsonText(ErrorBody(message, status < 500, "", CodeOf(status)));
}

std::string SseEvent(const Json& data) { return Concat("data: ", ToJsonText(data), "\n\n"); }

}  // namespace terrace
