#include "tools/cli/request_options.h"

#include <algorithm>

#include "base/json.h"
#include "tools/cli/format.h"

namespace terrace {
namespace {

const char* Name(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    default:
      return "error";
  }
}

Json UsageToJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"cached_tokens", usage.cached_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"speculated_tokens", usage.speculated_tokens()},
          {"accepted_speculated_tokens", usage.accepted_speculated_tokens()}};
}

Json TokenToJson(const v1::OutputToken& token) {
  Json json = {{"id", token.id()}, {"logprob", token.logprob()}};
  for (const v1::TokenLogprob& top : token.top()) {
    json["top"].push_back({{"id", top.token()}, {"logprob", top.logprob()}});
  }
  return json;
}

// The first token of a prompt has no log-probability.
Json PromptToJson(const std::vector<v1::OutputToken>& tokens) {
  Json json = Json::array();
  for (const v1::OutputToken& token : tokens) json.push_back(TokenToJson(token));
  json[0]["logprob"] = nullptr;
  return json;
}

}  // namespace

void RequestOptions::ApplyTo(v1::GenerateRequest& request) const {
  request.set_max_tokens(max_tokens);
  v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(temperature);
  if (top_k.has_value()) sampling.set_top_k(*top_k);
  if (top_p.has_value()) sampling.set_top_p(*top_p);
  if (min_p.has_value()) sampling.set_min_p(*min_p);
  if (seed.has_value()) sampling.set_seed(*seed);
  request.mutable_stop()->Assign(stop.begin(), stop.end());
  request.set_ignore_eos(ignore_eos);
}

double TokensPerSecond(const v1::GenerateFinished& finished) {
  return finished.total_seconds() > 0 ? finished.usage().completion_tokens() / finished.total_seconds() : 0;
}

std::string DescribeFinished(const v1::GenerateFinished& finished) {
  std::vector<std::string> asked;  // in order, each once
  for (const v1::TierAttempt& attempt : finished.attempts()) {
    if (std::find(asked.begin(), asked.end(), attempt.tier()) == asked.end()) asked.push_back(attempt.tier());
  }
  std::string tiers;
  for (const std::string& tier : asked) tiers += Concat(tiers.empty() ? "" : ", ", tier);
  const v1::Usage& usage = finished.usage();
  return Concat("tier ", finished.tier(), asked.size() > 1 ? Concat(" (asked ", tiers, ")") : "", ", ",
                usage.prompt_tokens(), " + ", usage.completion_tokens(), " tokens, first token ",
                FormatSeconds(finished.time_to_first_token_seconds()), ", ",
                FormatFixed(TokensPerSecond(finished), 0), " tokens/s",
                finished.price_usd() > 0 ? Concat(", ", FormatUsd(finished.price_usd())) : "");
}

v1::GenerateFinished TotalOf(const std::vector<Answer>& answers) {
  v1::GenerateFinished total = answers.front().finished;
  for (size_t i = 1; i < answers.size(); ++i) {
    const v1::GenerateFinished& finished = answers[i].finished;
    AddUsage(finished.usage(), *total.mutable_usage());
    total.mutable_attempts()->MergeFrom(finished.attempts());
    total.set_price_usd(total.price_usd() + finished.price_usd());
    total.set_time_to_first_token_seconds(
        std::min(total.time_to_first_token_seconds(), finished.time_to_first_token_seconds()));
    total.set_total_seconds(std::max(total.total_seconds(), finished.total_seconds()));
  }
  return total;
}

Json AnswerToJson(const Answer& answer) {
  const v1::GenerateFinished& finished = answer.finished;
  Json json = {{"text", answer.text},
               {"tokens", Json::array()},
               {"usage", UsageToJson(finished.usage())},
               {"finish_reason", Name(finished.reason())},
               {"tier", finished.tier()},
               {"attempts", Json::array()},
               {"price_usd", finished.price_usd()},
               {"timing",
                {{"time_to_first_token_seconds", finished.time_to_first_token_seconds()},
                 {"total_seconds", finished.total_seconds()}}}};
  if (!finished.stop().empty()) json["stop"] = finished.stop();
  for (const v1::OutputToken& token : answer.tokens) json["tokens"].push_back(TokenToJson(token));
  for (const v1::TierAttempt& attempt : finished.attempts()) {
    Json entry = {{"tier", attempt.tier()},
                  {"usage", UsageToJson(attempt.usage())},
                  {"mean_logprob", attempt.mean_logprob()},
                  {"min_logprob", attempt.min_logprob()},
                  {"accepted", attempt.accepted()},
                  {"price_usd", attempt.price_usd()}};
    if (!attempt.replica().empty()) entry["replica"] = attempt.replica();
    if (attempt.has_mean_margin()) entry["mean_margin"] = attempt.mean_margin();
    if (attempt.has_mean_entropy()) entry["mean_entropy"] = attempt.mean_entropy();
    if (attempt.has_score()) entry["score"] = attempt.score();
    if (attempt.has_threshold()) entry["threshold"] = attempt.threshold();
    json["attempts"].push_back(std::move(entry));
  }
  if (!answer.prompt_tokens.empty()) json["prompt_tokens"] = PromptToJson(answer.prompt_tokens);
  return json;
}

Json AnswersToJson(const std::vector<Answer>& answers) {
  if (answers.size() == 1) return AnswerToJson(answers.front());
  const v1::GenerateFinished total = TotalOf(answers);
  Json json = {
      {"answers", Json::array()}, {"usage", UsageToJson(total.usage())}, {"price_usd", total.price_usd()}};
  for (const Answer& answer : answers) json["answers"].push_back(AnswerToJson(answer));
  return json;
}

}  // namespace terrace
