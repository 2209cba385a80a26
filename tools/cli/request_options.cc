#include "tools/cli/request_options.h"

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
          {"completion_tokens", usage.completion_tokens()}};
}

Json TokenToJson(const v1::OutputToken& token) {
  Json json = {{"id", token.id()}, {"logprob", token.logprob()}};
  for (const v1::TokenLogprob& top : token.top()) {
    json["top"].push_back({{"id", top.token()}, {"logprob", top.logprob()}});
  }
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
  std::string asked;
  for (const v1::TierAttempt& attempt : finished.attempts()) {
    asked += Concat(asked.empty() ? "" : ", ", attempt.tier());
  }
  const v1::Usage& usage = finished.usage();
  return Concat("tier ", finished.tier(), finished.attempts_size() > 1 ? Concat(" (asked ", asked, ")") : "",
                ", ", usage.prompt_tokens(), " + ", usage.completion_tokens(), " tokens, first token ",
                FormatSeconds(finished.time_to_first_token_seconds()), ", ",
                FormatFixed(TokensPerSecond(finished), 0), " tokens/s",
                finished.price_usd() > 0 ? Concat(", ", FormatUsd(finished.price_usd())) : "");
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
                  {"accepted", attempt.accepted()},
                  {"price_usd", attempt.price_usd()}};
    if (!attempt.replica().empty()) entry["replica"] = attempt.replica();
    if (attempt.has_threshold()) entry["threshold"] = attempt.threshold();
    json["attempts"].push_back(std::move(entry));
  }
  return json;
}

}  // namespace terrace
