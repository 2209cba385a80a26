#include "tools/cli/evaluation.h"

#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/evaluate.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr const char* kTestTasks[] = {"classify", "extract", "moderate", "compute", "rewrite", "lookup"};

std::vector<TaskRow> TestRows() {
  std::vector<TaskRow> rows;
  for (const char* task : kTestTasks) {
    StatusOr<std::vector<TaskRow>> more = LoadTaskFile(Concat("models/eval/", task, ".jsonl"));
    CHECK(more.ok(), Message(more.status()));
    rows.insert(rows.end(), more->begin(), more->end());
  }
  return rows;
}

// Gives each chat the answer it is told, at once, in two pieces, from the tiers "a" (refused) and "b".
class FakeAnswerer : public Answerer {
 public:
  explicit FakeAnswerer(std::function<StatusOr<std::string>(const v1::ChatMessages&)> answer)
      : answer_(std::move(answer)) {}

  std::unique_ptr<AnswerCall> Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) override {
    ++asked_;
    const StatusOr<std::string> answer = answer_(request.chat());
    if (!answer.ok()) {
      on_piece(answer.status());
      return std::make_unique<Call>();
    }
    v1::GenerateResponse first, last;
    first.set_text(answer->substr(0, answer->size() / 2));
    last.set_text(answer->substr(answer->size() / 2));
    v1::GenerateFinished& finished = *last.mutable_finished();
    finished.set_tier("b");
    finished.set_price_usd(0.5);
    for (const char* tier : {"a", "b"}) {
      v1::TierAttempt& attempt = *finished.add_attempts();
      attempt.set_tier(tier);
      attempt.mutable_usage()->set_prompt_tokens(7);
      attempt.mutable_usage()->set_completion_tokens(3);
      attempt.mutable_usage()->set_speculated_tokens(2);
      attempt.mutable_usage()->set_accepted_speculated_tokens(1);
    }
    on_piece(std::move(first));
    on_piece(std::move(last));
    return std::make_unique<Call>();
  }

  StatusOr<v1::ListModelsResponse> ListModels() override {
    v1::ListModelsResponse models;
    for (const auto& [id, parameters] : {std::pair("a", 100), std::pair("b", 1000)}) {
      v1::Model& model = *models.add_models();
      model.set_id(id);
      model.set_parameters(parameters);
    }
    return models;
  }

  std::optional<SpeculationStats> Speculation() const override {
    if (!has_drafter) return std::nullopt;
    SpeculationStats stats{.drafter = "ngram", .passes = asked_};
    stats.verified[0] = stats.accepted[0] = asked_;
    return stats;
  }

  size_t asked() const { return asked_; }

  bool has_drafter = false;

 private:
  class Call : public AnswerCall {
    void Cancel() override {}
  };
  const std::function<StatusOr<std::string>(const v1::ChatMessages&)> answer_;
  size_t asked_ = 0;
};

TEST(Evaluation, ExpectedAnswersAreRightOnEveryTestFile) {
  const std::vector<TaskRow> rows = TestRows();
  std::map<std::string, std::string> expected;  // by chat
  for (const TaskRow& row : rows) expected[row.chat.SerializeAsString()] = row.expected;
  FakeAnswerer answerer([&](const v1::ChatMessages& chat) { return expected.at(chat.SerializeAsString()); });
  ShutdownSignal shutdown;
  const StatusOr<EvaluationResult> result = RunEvaluation(answerer, rows, {}, shutdown);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->tasks.size(), std::size(kTestTasks));
  for (const auto& [task, score] : result->tasks) {
    EXPECT_EQ(score.rows, 200u) << task;
    EXPECT_EQ(score.accuracy(), 1.0) << task;
  }
}

TEST(Evaluation, CountsEveryTierThatWasAsked) {
  std::vector<TaskRow> rows = TestRows();
  rows.resize(10);
  FakeAnswerer answerer([](const v1::ChatMessages&) { return "never right"; });
  ShutdownSignal shutdown;
  const StatusOr<EvaluationResult> result =
      RunEvaluation(answerer, rows, {.model = "m", .concurrency = 3}, shutdown);
  ASSERT_TRUE(result.ok()) << result.status();
  const Score all = result->All();
  EXPECT_EQ(all.right, 0u);
  EXPECT_EQ(all.prompt_tokens, 10u * 2 * 7);
  EXPECT_EQ(all.completion_tokens, 10u * 2 * 3);
  EXPECT_EQ(all.price_usd, 10 * 0.5);
  EXPECT_EQ(all.cost, 10.0 * (100 + 1000) * (7 + 3));
  EXPECT_THAT(result->answered_by, testing::ElementsAre(testing::Pair("b", 10u)));
  EXPECT_THAT(FormatEvaluation(*result, &*result), HasSubstr("1.000 of "));
}

TEST(Evaluation, SaysWhatWasDraftedByAllTiersAndMeanwhileInThisProcess) {
  std::vector<TaskRow> rows = TestRows();
  rows.resize(10);
  FakeAnswerer answerer([](const v1::ChatMessages&) { return "x"; });
  ShutdownSignal shutdown;
  const auto served = RunEvaluation(answerer, rows, {.model = "m"}, shutdown);
  ASSERT_TRUE(served.ok()) << served.status();
  Json json = EvaluationToJson(*served);
  EXPECT_EQ(json["all"]["speculated_tokens"], 10 * 2 * 2);
  EXPECT_EQ(json["speculation"]["verified"], 10 * 2 * 2);
  EXPECT_EQ(json["speculation"]["acceptance"], 0.5);
  EXPECT_TRUE(json["speculation"]["engine"].is_null());
  EXPECT_THAT(FormatEvaluation(*served, nullptr),
              HasSubstr("\ndrafts: 40 tokens verified, 20 accepted (50.0%)\n"));
  answerer.has_drafter = true;
  const auto in_process = RunEvaluation(answerer, rows, {.model = "m"}, shutdown);
  ASSERT_TRUE(in_process.ok()) << in_process.status();
  json = EvaluationToJson(*in_process);
  EXPECT_EQ(json["speculation"]["engine"]["passes"], 10) << "not those of the answers before";
  EXPECT_EQ(json["speculation"]["engine"]["tokens_per_pass"], 2);
  EXPECT_THAT(FormatEvaluation(*in_process, &*served),
              testing::AllOf(HasSubstr("\ndrafts (ngram): "), HasSubstr("\nm, drafts: 40 tokens")));
}

TEST(Evaluation, WhatIsKnownIsNotAskedAndCountsAlike) {
  std::vector<TaskRow> rows = TestRows();
  rows.resize(10);
  const auto first_word = [](const v1::ChatMessages& chat) {
    const std::string& text = chat.messages(0).content();
    return text.substr(0, text.find(' '));
  };
  FakeAnswerer answerer(first_word);
  ShutdownSignal shutdown;
  std::map<size_t, RowOutcome> told;
  EvaluationOptions options = {.model = "m"};
  options.on_outcome = [&told](size_t place, const RowOutcome& outcome) -> Status {
    told[place] = outcome;
    return {};
  };
  const auto whole = RunEvaluation(answerer, rows, options, shutdown);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_EQ(told.size(), 10u);
  ASSERT_EQ(whole->outcomes.size(), 10u);
  EXPECT_EQ(whole->outcomes[3].text, first_word(rows[3].chat));
  options.known = told;
  options.known.erase(4);
  options.known[5].text = rows[5].expected;  // answers are judged anew
  told.clear();
  const auto again = RunEvaluation(answerer, rows, options, shutdown);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(answerer.asked(), 11u);
  EXPECT_EQ(told.size(), 1u);
  EXPECT_EQ(again->All().right, whole->All().right + 1);
  EXPECT_EQ(again->All().cost, whole->All().cost);
  options.known.clear();
  options.on_outcome = [](size_t, const RowOutcome&) -> Status { return Unavailable("full"); };
  EXPECT_THAT(Message(RunEvaluation(answerer, rows, options, shutdown).status()), HasSubstr("full"));
}

TEST(Evaluation, LatenciesAreThoseThatAShareOfTheRowsDidNotExceed) {
  EvaluationResult result;
  for (const double seconds : {0.4, 0.1, 0.3, 0.2}) {
    result.outcomes.emplace_back().score.total_seconds = seconds;
  }
  EXPECT_EQ(result.LatencyQuantile(0.5), 0.2);
  EXPECT_EQ(result.LatencyQuantile(0.95), 0.4);
  EXPECT_EQ(EvaluationResult().LatencyQuantile(0.5), 0);
}

TEST(TaskSetDigest, FollowsWhatDecidesWhichAnswersAreRight) {
  std::vector<TaskRow> rows = TestRows();
  rows.resize(3);
  const Hash128 digest = TaskSetDigest(rows);
  EXPECT_EQ(TaskSetDigest(rows), digest);
  rows[1].expected += "x";
  EXPECT_NE(TaskSetDigest(rows), digest);
  rows = TestRows();
  rows.resize(3);
  rows[2].chat.mutable_messages(0)->set_role("assistant");
  EXPECT_NE(TaskSetDigest(rows), digest);
  rows.pop_back();
  EXPECT_NE(TaskSetDigest(rows), digest);
}

TEST(TaskSetDigest, FollowsTheRowsOwnTerms) {
  std::vector<TaskRow> rows = TestRows();
  rows.resize(1);
  static_cast<Expectation&>(rows[0]) = Expect(Checker::kContains, "a");
  const Hash128 digest = TaskSetDigest(rows);
  rows[0].any = {"b"};
  const Hash128 other = TaskSetDigest(rows);
  EXPECT_NE(other, digest);
  rows[0].any.clear();
  rows[0].all = {"a", "b"};
  EXPECT_NE(TaskSetDigest(rows), digest);
  EXPECT_NE(TaskSetDigest(rows), other);
}

TEST(TaskFile, RowsSayThemselvesWhatARefusalIsAndWhatIsContained) {
  const std::string path = std::filesystem::path(testing::TempDir()) / "own_terms.jsonl";
  const auto row_of = [&path](const std::string& end) {
    std::ofstream(path)
        << R"({"id":"i","task":"t","difficulty":1,"messages":[{"role":"user","content":"c"}],)" << end
        << "\n";
    return LoadTaskFile(path);
  };
  const auto refusal = row_of(R"("expected":"I cannot.","checker":"refusal","refuses":true})");
  ASSERT_TRUE(refusal.ok()) << refusal.status();
  EXPECT_TRUE(refusal->front().refuses);
  EXPECT_TRUE(IsRight(refusal->front(), "I cannot. Sorry.")) << "by itself its opening is what is expected";
  const auto openings =
      row_of(R"("expected":"I cannot.","checker":"refusal","refuses":true,"openings":["No","I can't"]})");
  ASSERT_TRUE(openings.ok()) << openings.status();
  EXPECT_TRUE(IsRight(openings->front(), "No way"));
  EXPECT_FALSE(IsRight(openings->front(), "I cannot."));
  const auto contains = row_of(R"("expected":"","checker":"contains","all":["a"],"any":["b","c"]})");
  ASSERT_TRUE(contains.ok()) << contains.status();
  EXPECT_TRUE(IsRight(contains->front(), "c a"));
  EXPECT_FALSE(IsRight(contains->front(), "a"));
  for (const auto& [bad, says] :
       {std::pair(R"("expected":"e","checker":"exact","refuses":true})", "needs the checker refusal"),
        std::pair(R"("expected":"e","checker":"refusal","any":["a"]})", "needs the checker contains"),
        std::pair(R"("expected":"e","checker":"refusal","refuses":1})", "true or false"),
        std::pair(R"("expected":"e","checker":"refusal","openings":["a"]})", "needs \"refuses\": true"),
        std::pair(R"("expected":"","checker":"refusal","refuses":true})", "neither"),
        std::pair(R"("expected":"e","checker":"contains","all":[]})", "list of 1 to"),
        std::pair(R"("expected":"e","checker":"contains","any":[" "]})", "blank"),
        std::pair(R"("expected":"","checker":"contains"})", "none of")}) {
    const Status status = row_of(bad).status();
    EXPECT_EQ(ExitCodeFor(status), kExitData) << bad;
    EXPECT_THAT(Message(status), HasSubstr(says)) << bad;
  }
}

TEST(Evaluation, RowsWithoutACheckerAreNotAsked) {
  const StatusOr<std::vector<TaskRow>> rows = LoadTaskFile("models/eval/calibration.jsonl");
  ASSERT_TRUE(rows.ok()) << rows.status();
  FakeAnswerer answerer([](const v1::ChatMessages&) { return "x"; });
  ShutdownSignal shutdown;
  const StatusOr<EvaluationResult> result = RunEvaluation(answerer, *rows, {}, shutdown);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->unscored_rows, 152u);  // the stories
  EXPECT_EQ(answerer.asked(), 360u);
}

TEST(ExplainedByRecords, AnInterruptionSaysWhetherAnswersWereKept) {
  EvaluateOptions options;
  EXPECT_EQ(ExplainedByRecords(Status(), options), Status());
  EXPECT_EQ(ExplainedByRecords(Unavailable("gone"), options), Unavailable("gone"));
  EXPECT_THAT(Message(ExplainedByRecords(Cancelled("interrupted"), options)),
              HasSubstr("no answers were kept"));
  options.records = "answers.jsonl";
  const Status kept = ExplainedByRecords(Cancelled("interrupted"), options);
  EXPECT_EQ(kept.code(), StatusCode::kCancelled);
  EXPECT_THAT(Message(kept), HasSubstr("the same command goes on"));
}

TEST(Evaluation, AFailedRequestEndsItAndNamesTheRow) {
  const std::vector<TaskRow> rows = TestRows();
  FakeAnswerer answerer([](const v1::ChatMessages&) { return Unavailable("gone"); });
  ShutdownSignal shutdown;
  const Status status = RunEvaluation(answerer, rows, {.model = "m", .concurrency = 1}, shutdown).status();
  EXPECT_EQ(status, Unavailable(rows[0].id, ": gone"));
  EXPECT_EQ(answerer.asked(), 1u);
}

TEST(TaskFile, AMalformedRowIsNamedByFileAndLine) {
  const std::string good =
      R"({"id":"i","task":"t","difficulty":1,"messages":[{"role":"user","content":"c"}],"expected":"e","checker":"exact"})";
  const struct {
    const char* cut;
    const char* paste;
    const char* names;
  } cases[] = {
      {R"("id":"i",)", "", "\"id\""},
      {R"("t")", "7", "\"task\""},
      {"exact", "fuzzy", "fuzzy"},
      {R"("difficulty":1)", R"("difficulty":"1")", "difficulty"},
      {R"("role":"user")", R"("role":null)", "role"},
      {R"([{"role":"user","content":"c"}])", "[]", "messages"},
      {R"([{"role":"user","content":"c"}])", "{}", "messages"},
      {R"("expected":"e")", R"("expected":"e)", "byte"},
  };
  const std::string path = std::filesystem::path(testing::TempDir()) / "tasks.jsonl";
  for (const auto& c : cases) {
    std::string bad = good;
    bad.replace(bad.find(c.cut), std::string(c.cut).size(), c.paste);
    std::ofstream(path) << good << "\n" << bad << "\n" << good << "\n";
    const Status status = LoadTaskFile(path).status();
    EXPECT_EQ(ExitCodeFor(status), kExitData) << bad;
    EXPECT_THAT(Message(status), testing::AllOf(HasSubstr("tasks.jsonl:2: "), HasSubstr(c.names)));
  }
  std::ofstream(path) << good << "\n\n";
  EXPECT_THAT(Message(LoadTaskFile(path).status()), HasSubstr("tasks.jsonl:2: "));
  std::ofstream(path) << "";
  EXPECT_EQ(ExitCodeFor(LoadTaskFile(path).status()), kExitData);
  EXPECT_EQ(ExitCodeFor(LoadTaskFile("/nowhere.jsonl").status()), kExitNoInput);
}

}  // namespace
}  // namespace terrace
