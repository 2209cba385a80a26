// Tests of the dispatcher: three tiers of fake workers, a client that keeps what it gets, and a clock. One
// thread, unless a test says otherwise.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/cluster/fake_cluster.h"
#include "router/dispatch/dispatcher.h"

namespace terrace {

inline constexpr double kThreshold = -0.5;  // of the cascade's first two steps
inline constexpr float kConfident = -0.1f, kUnsure = -2.0f;

class FakeSink : public AnswerSink {
 public:
  struct Choice {
    std::string text = {};
    std::vector<TokenId> tokens = {};
    std::vector<std::string> details = {};  // of each token: id, log-probability, alternatives
    std::vector<ToolCall> tool_calls = {};
    std::optional<AnswerSummary> end = {};
  };

  void OnPromptTokens(std::vector<AnswerToken> tokens_of_prompt) override {
    EXPECT_TRUE(prompt_tokens.empty()) << "twice";
    EXPECT_TRUE(choices[0].text.empty() && choices[0].tokens.empty()) << "behind the answer";
    prompt_tokens = std::move(tokens_of_prompt);
  }
  void OnPiece(AnswerPiece piece) override {
    EXPECT_FALSE(end.has_value()) << "a piece after the end";
    Choice& choice = choices[piece.choice];
    EXPECT_FALSE(choice.end.has_value()) << "a piece after the end of its choice";
    choice.text += piece.text;
    for (const AnswerToken& token : piece.tokens) {
      choice.tokens.push_back(token.id);
      std::string& details = choice.details.emplace_back(Concat(token.id, " ", token.logprob));
      for (const RankedToken& top : token.top) details += Concat(" ", top.id, ":", top.logprob);
    }
    for (const ToolCall& call : piece.tool_calls) choice.tool_calls.push_back(call);
  }
  void OnChoiceEnd(uint32_t choice, const AnswerSummary& summary) override {
    EXPECT_FALSE(end.has_value()) << "a choice after the end";
    EXPECT_FALSE(choices[choice].end.has_value()) << "ended twice";
    choices[choice].end = summary;
  }
  void OnFinish(StatusOr<AnswerSummary> summary) override {
    EXPECT_FALSE(end.has_value()) << "finished twice";
    end = std::move(summary);
  }
  bool is_closed() const override { return closed; }
  bool is_too_slow() const override { return too_slow; }
  bool is_full() const override { return full; }
  void OnRoom(std::function<void()> on_room) override { room = std::move(on_room); }

  std::vector<AnswerToken> prompt_tokens;
  std::map<uint32_t, Choice> choices;
  std::string& text = choices[0].text;  // of a request's only answer
  std::vector<TokenId>& tokens = choices[0].tokens;
  std::optional<StatusOr<AnswerSummary>> end;
  bool closed = false, too_slow = false, full = false;
  std::function<void()> room;  // as OnRoom was given it
};

// The first candidate: scenarios then know who is asked.
class FirstBalancer : public Balancer {
 public:
  size_t Pick(const Arrival&, std::span<const Candidate>) const override { return 0; }
};

// Tiers nano, small and base with prices 1, 10 and 100 $ per million tokens; policy auto asks them in order.
class DispatcherTest : public ::testing::Test {
 protected:
  static constexpr size_t kNano = 0, kSmall = 1, kBase = 2;

  DispatcherTest()
      : catalog_(*ModelCatalog::Make(
            {{.name = "nano", .price = {1, 1}},
             {.name = "small", .price = {10, 10}},
             {.name = "base", .price = {100, 100}}},
            {{.name = "auto", .steps = {{0, Gate(kThreshold)}, {1, Gate(kThreshold), true}, {2, {}, true}}}},
            "")),
        recorder_(metrics_, std::vector<std::string>{"nano", "small", "base"}),
        dispatcher_(
            MakeDispatcher({cluster_, *catalog_, balancer_, admission_, recorder_, clock_, /*seed=*/7})) {}

  RequestFields Fields(std::string model, RequestInput input = std::string("abcd")) {
    RequestFields fields;
    fields.request_id = "r";
    fields.model = std::move(model);
    fields.input = std::move(input);
    fields.arrival = clock_.Now();
    fields.deadline = clock_.Now() + std::chrono::seconds(60);
    return fields;
  }

  Dispatcher::CancelCall Generate(RequestFields fields) {
    auto request = Request::Make(std::move(fields));
    CHECK(request.ok(), Message(request.status()));
    return dispatcher_->Generate(*request, sink_);
  }

  StatusOr<TokenizedInput> Tokenize(RequestFields fields, bool with_bytes = false) {
    StatusOr<TokenizedInput> out;
    dispatcher_->Tokenize(*Request::Make(std::move(fields)), with_bytes,
                          [&out](StatusOr<TokenizedInput> input) { out = std::move(input); });
    return out;
  }
  StatusOr<std::string> Detokenize(RequestFields fields) {
    fields.api = ApiKind::kTokenize;
    StatusOr<std::string> out;
    dispatcher_->Detokenize(*Request::Make(std::move(fields)),
                            [&out](StatusOr<std::string> text) { out = std::move(text); });
    return out;
  }

  // The end of the answer, which must have come.
  const StatusOr<AnswerSummary>& End() {
    CHECK(sink_->end.has_value(), "not finished");
    EXPECT_EQ(admission_.in_flight(), 0u) << "the place was not given back";
    return *sink_->end;
  }

  // The value of one series; -1 when there is none.
  double Metric(const std::string& series) const {
    const std::string text = "\n" + metrics_.Render();
    const size_t found = text.find("\n" + series + " ");
    return found == std::string::npos ? -1 : std::stod(text.substr(found + series.size() + 2));
  }
  // All that was done on a tier so far.
  void ExpectMetered(const std::string& tier, const TokenUsage& usage, double price_usd) const {
    const std::string label = "{tier=\"" + tier + "\"}";
    EXPECT_EQ(Metric("terrace_prompt_tokens_total" + label), usage.prompt_tokens);
    EXPECT_EQ(Metric("terrace_cached_tokens_total" + label), usage.cached_tokens);
    EXPECT_EQ(Metric("terrace_generation_tokens_total" + label), usage.completion_tokens);
    EXPECT_NEAR(Metric("terrace_cost_usd_total" + label), price_usd, 1e-9);
  }

  FakeClock clock_;
  MetricRegistry metrics_;
  std::unique_ptr<ModelCatalog> catalog_;
  FirstBalancer balancer_;
  TenantLedger ledger_{clock_};
  AdmissionBook book_{ledger_, clock_};
  Admission admission_{
      {.max_in_flight = 4, .max_queued = 2}, std::vector<std::string>{"nano", "small", "base"}, book_};
  Recorder recorder_;
  // Its calls hold the requests that a test leaves unfinished, so it goes before what they use.
  FakeCluster cluster_{
      std::array<FakeCluster::TierSpec, 3>{{{"nano", 2, 64}, {"small", 1, 64}, {"base", 2, 64}}}};
  std::unique_ptr<Dispatcher> dispatcher_;
  std::shared_ptr<FakeSink> sink_ = std::make_shared<FakeSink>();
};

}  // namespace terrace
