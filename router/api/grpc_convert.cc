#include "router/api/grpc_convert.h"

namespace terrace {
namespace {

std::vector<ChatMessage> ChatFromProto(const v1::ChatMessages& chat) {
  std::vector<ChatMessage> out;
  for (const v1::ChatMessage& message : chat.messages()) {
    ChatMessage& next = out.emplace_back(ChatMessage{.role = message.role(),
                                                     .content = message.content(),
                                                     .tool_call_id = message.tool_call_id(),
                                                     .name = message.name()});
    for (const v1::ToolCall& call : message.tool_calls())
      next.tool_calls.push_back({.id = call.id(), .name = call.name(), .arguments = call.arguments()});
  }
  return out;
}

template <typename Tools>
std::vector<Tool> ToolsFromProto(const Tools& tools) {
  std::vector<Tool> out;
  for (const v1::Tool& tool : tools)
    out.push_back({.name = tool.name(), .description = tool.description(), .parameters = tool.parameters()});
  return out;
}

v1::FinishReason ReasonToProto(AnswerEnd end) {
  switch (end) {
    case AnswerEnd::kStop:
      return v1::FINISH_REASON_STOP;
    case AnswerEnd::kLength:
      return v1::FINISH_REASON_LENGTH;
    case AnswerEnd::kToolCalls:
      return v1::FINISH_REASON_TOOL_CALLS;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

template <typename Message>
RequestInput PromptOrChat(const Message& request) {
  if (request.has_chat()) return ChatFromProto(request.chat());
  return request.prompt();
}

template <typename Message>
RequestInput AnyInput(const Message& request) {
  if (!request.has_prompt_tokens()) return PromptOrChat(request);
  const auto& ids = request.prompt_tokens().ids();
  return std::vector<TokenId>(ids.begin(), ids.end());
}

void SamplingFromProto(const v1::SamplingParams& from, RequestFields& out) {
  if (from.has_temperature()) out.temperature = from.temperature();
  if (from.has_top_k()) out.top_k = from.top_k();
  if (from.has_top_p()) out.top_p = from.top_p();
  if (from.has_min_p()) out.min_p = from.min_p();
  if (from.has_repetition_penalty()) out.repetition_penalty = from.repetition_penalty();
  if (from.has_presence_penalty()) out.presence_penalty = from.presence_penalty();
  if (from.has_frequency_penalty()) out.frequency_penalty = from.frequency_penalty();
  if (from.has_seed()) out.seed = from.seed();
  for (const auto& [token, bias] : from.logit_bias()) out.logit_bias.emplace_back(token, bias);
}

void TokenToProto(const AnswerToken& token, bool with_logprobs, v1::OutputToken& out) {
  out.set_id(token.id);
  if (!with_logprobs) return;
  out.set_logprob(token.logprob);
  for (const RankedToken& ranked : token.top) {
    v1::TokenLogprob& top = *out.add_top();
    top.set_token(ranked.id);
    top.set_logprob(ranked.logprob);
  }
}

void UsageToProto(const TokenUsage& usage, v1::Usage& out) {
  out.set_prompt_tokens(usage.prompt_tokens);
  out.set_cached_tokens(usage.cached_tokens);
  out.set_completion_tokens(usage.completion_tokens);
  out.set_speculated_tokens(usage.speculated_tokens);
  out.set_accepted_speculated_tokens(usage.accepted_speculated_tokens);
}

}  // namespace

RequestFields FieldsFromProto(const v1::GenerateRequest& request) {
  RequestFields out{.api = ApiKind::kGenerate, .model = request.model(), .input = AnyInput(request)};
  out.tier = request.tier();
  if (request.has_max_usd()) out.max_usd = request.max_usd();
  if (request.has_max_seconds()) out.max_seconds = request.max_seconds();
  if (request.has_speculation_max_tokens()) out.speculation_max_tokens = request.speculation_max_tokens();
  if (request.max_tokens() > 0) out.max_tokens = request.max_tokens();
  SamplingFromProto(request.sampling(), out);
  out.stop.assign(request.stop().begin(), request.stop().end());
  out.stop_tokens.assign(request.stop_tokens().begin(), request.stop_tokens().end());
  out.ignore_eos = request.ignore_eos();
  out.logprobs = request.logprobs();
  // Without `logprobs` the alternatives are of the prompt's tokens alone.
  if (request.logprobs() || !request.prompt_logprobs()) out.top_logprobs = request.top_logprobs();
  if (request.prompt_logprobs()) out.prompt_logprobs = request.top_logprobs();
  if (request.n() > 0) out.choices = request.n();
  if (request.best_of() > 0) out.best_of = request.best_of();
  out.echo = request.echo();
  out.tools = ToolsFromProto(request.tools());
  out.parallel_tool_calls = !request.single_tool_call();
  out.add_generation_prompt = !request.without_generation_prompt();
  out.priority = request.priority();
  out.cache_salt = request.cache_salt();
  return out;
}

RequestFields FieldsFromProto(const v1::ScoreRequest& request) {
  return {.api = ApiKind::kScore,
          .model = request.model(),
          .input = AnyInput(request),
          .logprobs = true,
          .top_logprobs = request.top_logprobs()};
}

RequestFields FieldsFromProto(const v1::TokenizeRequest& request) {
  return {.api = ApiKind::kTokenize,
          .model = request.model(),
          .input = PromptOrChat(request),
          .tools = ToolsFromProto(request.tools()),
          .add_generation_prompt = !request.without_generation_prompt()};
}

RequestFields FieldsFromProto(const v1::DetokenizeRequest& request) {
  return {.api = ApiKind::kTokenize,
          .model = request.model(),
          .input = std::vector<TokenId>(request.tokens().begin(), request.tokens().end())};
}

void PieceToProto(const AnswerPiece& piece, bool with_logprobs, v1::GenerateResponse& out) {
  out.set_choice(piece.choice);
  out.set_text(piece.text);
  for (const AnswerToken& token : piece.tokens) TokenToProto(token, with_logprobs, *out.add_tokens());
  for (const ToolCall& call : piece.tool_calls) {
    v1::ToolCall& next = *out.add_tool_calls();
    next.set_id(call.id);
    next.set_name(call.name);
    next.set_arguments(call.arguments);
  }
}

void PromptTokensToProto(std::span<const AnswerToken> tokens, v1::GenerateResponse& out) {
  for (const AnswerToken& token : tokens)
    TokenToProto(token, /*with_logprobs=*/true, *out.add_prompt_tokens());
}

void SummaryToProto(const AnswerSummary& summary, bool shows_replicas, v1::GenerateFinished& out) {
  out.set_reason(ReasonToProto(summary.end));
  out.set_stop(summary.stop);
  UsageToProto(summary.usage, *out.mutable_usage());
  out.set_tier(summary.tier);
  out.set_tier_reason(summary.reason);
  for (const AnswerAttempt& attempt : summary.attempts) {
    v1::TierAttempt& next = *out.add_attempts();
    next.set_tier(attempt.tier);
    if (shows_replicas) next.set_replica(attempt.replica);
    UsageToProto(attempt.usage, *next.mutable_usage());
    next.set_mean_logprob(attempt.mean_logprob);
    next.set_min_logprob(attempt.min_logprob);
    if (attempt.mean_margin.has_value()) next.set_mean_margin(*attempt.mean_margin);
    if (attempt.mean_entropy.has_value()) next.set_mean_entropy(*attempt.mean_entropy);
    if (attempt.score.has_value()) next.set_score(*attempt.score);
    if (attempt.threshold.has_value()) next.set_threshold(*attempt.threshold);
    next.set_accepted(attempt.accepted);
    next.set_price_usd(ShownUsd(attempt.price_usd));
    next.set_predicted_cached_tokens(attempt.predicted_cached_tokens);
    next.set_resumed_tokens(attempt.resumed_tokens);
    next.set_draft_tokens(attempt.draft_tokens);
    next.set_accepted_draft_tokens(attempt.accepted_draft_tokens);
  }
  out.set_price_usd(ShownUsd(summary.price_usd));
  out.set_time_to_first_token_seconds(summary.time_to_first_token_seconds);
  out.set_total_seconds(summary.total_seconds);
}

void ScoreToProto(const ScoreAnswer& answer, v1::ScoreResponse& out) {
  for (const AnswerToken& token : answer.tokens)
    TokenToProto(token, /*with_logprobs=*/true, *out.add_tokens());
  out.set_first_token(answer.first_token);
  out.set_sum_logprob(answer.sum_logprob);
  out.set_tier(answer.tier);
  out.set_price_usd(ShownUsd(answer.price_usd));
}

void TokenizedToProto(const TokenizedInput& input, v1::TokenizeResponse& out) {
  out.mutable_ids()->Add(input.tokens.begin(), input.tokens.end());
  out.set_context_length(input.context_length);
  for (const std::string& bytes : input.token_bytes) out.add_token_bytes(bytes);
}

void ModelToProto(const ModelInfo& model, v1::Model& out) {
  out.set_id(model.id);
  out.set_is_policy(model.is_policy);
  for (const std::string& tier : model.tiers) out.add_tiers(tier);
  out.set_ready(model.is_ready);
  out.set_context_length(model.context_length);
  out.set_parameters(model.parameters);
  out.set_usd_per_million_prompt_tokens(model.price.usd_per_million_prompt_tokens);
  out.set_usd_per_million_completion_tokens(model.price.usd_per_million_completion_tokens);
}

}  // namespace terrace
