#include "router/api/openai_format.h"

#include <algorithm>
#include <span>
#include <utility>

#include "router/request/param.h"
#include "text/unicode.h"

namespace terrace {
namespace {

Json UsageJson(const TokenUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details",
           {{"accepted_prediction_tokens", usage.accepted_speculated_tokens},
            {"rejected_prediction_tokens", usage.speculated_tokens - usage.accepted_speculated_tokens}}}};
}

Json TerraceJson(const CompletionHead& head, const AnswerSummary& summary) {
  Json attempts = Json::array();
  for (const AnswerAttempt& attempt : summary.attempts) {
    attempts.push_back({{"choice", attempt.choice},
                        {"tier", attempt.tier},
                        {"mean_logprob", attempt.mean_logprob},
                        {"min_logprob", attempt.min_logprob},
                        {"mean_margin", OrNull(attempt.mean_margin)},
                        {"mean_entropy", OrNull(attempt.mean_entropy)},
                        {"score", OrNull(attempt.score)},
                        {"threshold", OrNull(attempt.threshold)},
                        {"accepted", attempt.accepted},
                        {"prompt_tokens", attempt.usage.prompt_tokens},
                        {"cached_tokens", attempt.usage.cached_tokens},
                        {"predicted_cached_tokens", attempt.predicted_cached_tokens},
                        {"completion_tokens", attempt.usage.completion_tokens},
                        {"resumed_tokens", attempt.resumed_tokens},
                        {"draft_tokens", attempt.draft_tokens},
                        {"accepted_draft_tokens", attempt.accepted_draft_tokens},
                        {"speculated_tokens", attempt.usage.speculated_tokens},
                        {"accepted_speculated_tokens", attempt.usage.accepted_speculated_tokens},
                        {"price_usd", ShownUsd(attempt.price_usd)}});
    if (head.shows_replicas) attempts.back()["replica"] = attempt.replica;
  }
  return {{"tier", summary.tier},
          {"reason", summary.reason},
          {"attempts", std::move(attempts)},
          {"price_usd", ShownUsd(summary.price_usd)},
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

size_t Characters(const std::string& bytes) {
  return static_cast<size_t>(std::ranges::count_if(bytes, [](char c) { return (c & 0xc0) != 0x80; }));
}

// The lists of a completion; the first token of a prompt has no log-probability.
Json CompletionLogprobsJson(const CompletionHead& head, std::span<const AnswerToken> prompt,
                            const std::vector<AnswerToken>& answer, size_t& offset) {
  Json tokens = Json::array(), logprobs = Json::array(), tops = Json::array(), offsets = Json::array();
  const auto add = [&](const AnswerToken& token, bool is_first_of_prompt) {
    tokens.push_back(TokenText(token.bytes));
    logprobs.push_back(is_first_of_prompt ? Json() : Json(token.logprob));
    Json top = is_first_of_prompt ? Json() : Json::object();
    for (const RankedToken& ranked : token.top) top.emplace(TokenText(ranked.bytes), ranked.logprob);
    if (!is_first_of_prompt) top.emplace(TokenText(token.bytes), token.logprob);  // also if it was unlikely
    tops.push_back(std::move(top));
    offsets.push_back(offset);
    offset += Characters(token.bytes);
  };
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (!prompt[i].is_control || head.echoes_control) add(prompt[i], i == 0);
  }
  for (const AnswerToken& token : answer) {
    if (!token.is_control) add(token, false);  // end tokens are no part of the text
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", head.top_logprobs > 0 ? std::move(tops) : Json()},
          {"text_offset", std::move(offsets)}};
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

const char* ChunkName(const CompletionHead& head) {
  return head.is_chat ? "chat.completion.chunk" : "text_completion";
}

// `content` is the delta of a chat, or the text of a completion.
Json Chunk(const CompletionHead& head, uint32_t choice, Json content, Json logprobs, Json finish_reason) {
  Json out = HeadJson(head, ChunkName(head));
  out["choices"] = {{{"index", choice},
                     {head.is_chat ? "delta" : "text", std::move(content)},
                     {"logprobs", std::move(logprobs)},
                     {"finish_reason", std::move(finish_reason)}}};
  if (head.include_usage) out["usage"] = nullptr;
  return out;
}

std::string_view ErrorType(int status) {
  switch (status) {
    case 403:
      return "permission_error";
    case 408:
      return "timeout_error";
    case 429:
      return "rate_limit_exceeded";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

// Beside calls there may be no text, which is null then.
Json MessageJson(const AnswerPiece& answer) {
  Json content = answer.text.empty() && !answer.tool_calls.empty() ? Json() : Json(answer.text);
  Json message = {{"role", "assistant"}, {"content", std::move(content)}, {"refusal", nullptr}};
  for (const ToolCall& call : answer.tool_calls) {
    message["tool_calls"].push_back({{"id", call.id},
                                     {"type", "function"},
                                     {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  return message;
}

Json ErrorBody(std::string_view message, int status, const std::string& param, std::string_view code) {
  return {{"error",
           {{"message", message},
            {"type", ErrorType(status)},
            {"param", param.empty() ? Json() : Json(param)},
            {"code", code}}}};
}

}  // namespace

Json CompletionJson(const CompletionHead& head, const std::vector<WholeChoice>& choices,
                    const std::vector<std::vector<AnswerToken>>& prompts, const AnswerSummary& total) {
  Json out = HeadJson(head, head.is_chat ? "chat.completion" : "text_completion");
  Json list = Json::array();
  for (const auto& [answer, end] : choices) {
    Json choice = {{"index", list.size()}, {"logprobs", nullptr}, {"finish_reason", AnswerEndName(end)}};
    if (head.is_chat) {
      choice["message"] = MessageJson(answer);
      if (head.logprobs) choice["logprobs"] = LogprobsJson(answer.tokens);
    } else {
      size_t offset = 0;
      const size_t prompt = list.size() / head.choices_per_prompt;
      const auto prompt_tokens = prompt < prompts.size() ? std::span<const AnswerToken>(prompts[prompt])
                                                         : std::span<const AnswerToken>();
      choice["text"] = answer.text;
      if (head.logprobs)
        choice["logprobs"] = CompletionLogprobsJson(head, prompt_tokens, answer.tokens, offset);
    }
    list.push_back(std::move(choice));
  }
  out["choices"] = std::move(list);
  if (head.is_chat && !prompts.empty()) out["prompt_logprobs"] = PromptLogprobsJson(prompts.front());
  out["usage"] = UsageJson(total.usage);
  out["terrace"] = TerraceJson(head, total);
  return out;
}

Json FirstChunk(const CompletionHead& head, uint32_t choice) {
  return Chunk(head, choice, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr);
}

Json CallChunk(const CompletionHead& head, uint32_t choice, const ToolCall& call, size_t index) {
  const Json delta = {{"index", index},
                      {"id", call.id},
                      {"type", "function"},
                      {"function", {{"name", call.name}, {"arguments", ""}}}};
  return Chunk(head, choice, {{"tool_calls", Json::array({delta})}}, nullptr, nullptr);
}

Json ArgumentsChunk(const CompletionHead& head, uint32_t choice, const ToolCall& call, size_t index) {
  const Json delta = {{"index", index}, {"function", {{"arguments", call.arguments}}}};
  return Chunk(head, choice, {{"tool_calls", Json::array({delta})}}, nullptr, nullptr);
}

Json LastChunk(const CompletionHead& head, uint32_t choice, const AnswerSummary& summary) {
  Json out =
      Chunk(head, choice, head.is_chat ? Json::object() : Json(""), nullptr, AnswerEndName(summary.end));
  out["terrace"] = TerraceJson(head, summary);
  return out;
}

Json UsageChunk(const CompletionHead& head, const AnswerSummary& total) {
  Json out = HeadJson(head, ChunkName(head));
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
  return ErrorBody(Message(error), status, Param(error), reason.empty() ? HttpErrorCode(status) : reason);
}

std::string_view HttpErrorCode(int status) {
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
    case 414:
      return "uri_too_long";
    case 415:
      return "unsupported_media_type";
    case 417:
      return "expectation_failed";
    case 431:
      return "headers_too_large";
    case 503:
      return "overloaded";
    default:
      return "internal";
  }
}

std::string HttpErrorBody(int status, std::string_view message) {
  return ToJsonText(ErrorBody(message, status, "", HttpErrorCode(status)));
}

std::string TokenText(const std::string& bytes) {
  if (IsValidUtf8(bytes)) return bytes;
  std::string out = "bytes:";
  for (const char c : bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    out += {'\\', 'x', kDigits[static_cast<unsigned char>(c) >> 4], kDigits[c & 15]};
  }
  return out;
}

std::string SseEvent(const Json& data) { return Concat("data: ", ToJsonText(data), "\n\n"); }

// A chunk with marks in the place of what changes is cut at them. Members are sorted, and "choices" comes
// first: no name of the client's stands before the marks.
PieceEvents::PieceEvents(const CompletionHead& head, uint32_t choice) : head_(head) {
  constexpr std::string_view kMark = "\"\\u0000\"";  // as it is written
  const Json mark = std::string(1, '\0');
  const std::string event =
      SseEvent(Chunk(head, choice, head.is_chat ? Json{{"content", mark}} : mark, mark, nullptr));
  const size_t first = event.find(kMark), second = event.find(kMark, first + kMark.size());
  before_ = event.substr(0, first);
  between_ = event.substr(first + kMark.size(), second - first - kMark.size());
  after_ = event.substr(second + kMark.size());
}

std::string PieceEvents::Next(const AnswerPiece& piece) {
  std::string out;
  out.reserve(before_.size() + piece.text.size() + between_.size() + after_.size() + 8);
  out += before_;
  const auto add_logprobs = [&] {
    if (!head_.logprobs) {
      out += "null";
    } else if (head_.is_chat) {
      AppendJsonText(LogprobsJson(piece.tokens), out);
    } else {
      AppendJsonText(CompletionLogprobsJson(head_, {}, piece.tokens, offset_), out);
    }
  };
  if (head_.is_chat) {  // "delta" < "logprobs" < "text"
    AppendJsonString(piece.text, out);
    out += between_;
    add_logprobs();
  } else {
    add_logprobs();
    out += between_;
    AppendJsonString(piece.text, out);
  }
  out += after_;
  return out;
}

}  // namespace terrace
