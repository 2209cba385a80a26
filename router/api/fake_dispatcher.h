// A dispatcher for the API tests: each Generate is answered by a script that the test sets.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "router/dispatch/dispatcher.h"

namespace terrace {

class FakeDispatcher : public Dispatcher {
 public:
  using Script = std::function<void(const RequestPtr&, const std::shared_ptr<AnswerSink>&)>;

  CancelCall Generate(RequestPtr request, std::shared_ptr<AnswerSink> sink) override {
    script(request, sink);
    return on_cancel;
  }
  CancelCall Score(RequestPtr request, OnScore on_score) override {
    last_score = std::move(request);
    on_score(score);
    return on_cancel;
  }
  CancelCall Tokenize(RequestPtr request, bool with_bytes, OnTokenized on_tokenized) override {
    last_tokenized = request->input();
    const TokenizedInput input{.tokens = tokens,
                               .token_bytes = with_bytes ? token_bytes : std::vector<std::string>(),
                               .context_length = 512};
    on_tokenized(tokenize_error.ok() ? StatusOr<TokenizedInput>(input) : tokenize_error);
    return on_cancel;
  }
  CancelCall Detokenize(RequestPtr request, OnText on_text) override {
    last_tokenized = request->input();
    on_text(tokenize_error.ok() ? StatusOr<std::string>(detokenized) : tokenize_error);
    return on_cancel;
  }
  std::vector<ModelInfo> ListModels(const Tenant&) const override { return models; }
  void RecordRefused(const RefusedRequest& request) override {
    std::lock_guard lock(mutex);
    refused.push_back(request.request_id);
    last_refused = request;
  }

  // A script that answers `pieces` one by one and then finishes with `end`.
  static Script Answers(std::vector<std::string> pieces, Status end = {}) {
    return [=](const RequestPtr&, const std::shared_ptr<AnswerSink>& sink) {
      for (const std::string& text : pieces) {
        sink->OnPiece(
            {.text = text,
             .tokens = {
                 {.id = 7, .logprob = -0.5f, .bytes = text, .top = {{7, -0.5f, text}, {8, -1.5f, "x"}}}}});
      }
      if (!end.ok()) return sink->OnFinish(end);
      const AnswerSummary summary{.end = AnswerEnd::kStop,
                                  .usage = {.prompt_tokens = 10,
                                            .cached_tokens = 4,
                                            .completion_tokens = 2,
                                            .speculated_tokens = 3,
                                            .accepted_speculated_tokens = 1},
                                  .tier = "base",
                                  .reason = "cascade: accepted at step 2",
                                  .attempts = {{.tier = "nano",
                                                .replica = "n:1",
                                                .mean_logprob = -0.3,
                                                .min_logprob = -0.5,
                                                .mean_margin = 1.5,
                                                .mean_entropy = 0.75,
                                                .score = -0.3,
                                                .threshold = -0.2},
                                               {.tier = "base", .replica = "b:1", .accepted = true}},
                                  .price_usd = 0.25,
                                  .time_to_first_token_seconds = 0.5};
      sink->OnChoiceEnd(0, summary);
      sink->OnFinish(summary);
    };
  }

  // A script of two answers whose pieces come mixed: "ab" and "xy", 10 tokens of prompt, 2 + 3 of answers;
  // the prompt's tokens first, where they are asked for.
  static Script TwoAnswers() {
    return [](const RequestPtr& request, const std::shared_ptr<AnswerSink>& sink) {
      if (request->prompt_logprobs().has_value()) {
        sink->OnPromptTokens(
            {{.id = 3, .bytes = "p"}, {.id = 4, .logprob = -0.5f, .bytes = "q", .top = {{9, -0.25f, "r"}}}});
      }
      AnswerSummary total{.usage = {.prompt_tokens = 10, .completion_tokens = 2},
                          .tier = "base",
                          .attempts = {{.choice = 0, .tier = "base", .accepted = true}},
                          .price_usd = 0.5};
      AnswerSummary second{.end = AnswerEnd::kLength,
                           .usage = {.completion_tokens = 3},
                           .tier = "nano",
                           .attempts = {{.choice = 1, .tier = "nano", .accepted = true}},
                           .price_usd = 0.25};
      const auto send = [&](uint32_t choice, const char* text) {
        sink->OnPiece({.choice = choice, .text = text, .tokens = {{.id = 7, .bytes = text}}});
      };
      send(1, "x"), send(0, "a"), send(1, "y");
      sink->OnChoiceEnd(1, second);
      send(0, "b");
      sink->OnChoiceEnd(0, total);
      total.usage.completion_tokens += second.usage.completion_tokens;
      total.attempts.push_back(second.attempts.front());
      total.price_usd += second.price_usd;
      sink->OnFinish(total);
    };
  }

  // A script of an answer with text, then two calls.
  static Script Calls() {
    return [](const RequestPtr&, const std::shared_ptr<AnswerSink>& sink) {
      sink->OnPiece({.text = "look", .tokens = {{.id = 7, .bytes = "look"}}});
      sink->OnPiece({.tool_calls = {{.id = "call_1", .name = "add", .arguments = R"({"b": 1, "a": 2})"}}});
      sink->OnPiece({.tool_calls = {{.id = "call_2", .name = "now", .arguments = "{}"}}});
      const AnswerSummary summary{.end = AnswerEnd::kToolCalls};
      sink->OnChoiceEnd(0, summary);
      sink->OnFinish(summary);
    };
  }

  Script script = Answers({"hello"});
  CancelCall on_cancel = [] {};
  StatusOr<ScoreAnswer> score = ScoreAnswer{};
  RequestPtr last_score;
  std::vector<TokenId> tokens;
  std::vector<std::string> token_bytes;
  std::string detokenized;
  Status tokenize_error;
  RequestInput last_tokenized;
  std::vector<ModelInfo> models;
  std::mutex mutex;
  std::vector<std::string> refused;  // ids; GUARDED_BY(mutex)
  RefusedRequest last_refused;       // GUARDED_BY(mutex)
};

}  // namespace terrace
