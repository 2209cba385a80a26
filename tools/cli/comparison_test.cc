#include "tools/cli/comparison.h"

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr char kRefusal[] = "Sorry, I can't help with that request.";

TaskRow Row(const std::string& task, Checker checker, const std::string& expected) {
  TaskRow row;
  row.task = task;
  static_cast<Expectation&>(row) = Expect(checker, expected);
  return row;
}

EvaluationResult ResultOf(const std::vector<TaskRow>& rows, const std::vector<std::string>& answers) {
  std::vector<RowOutcome> outcomes;
  for (const std::string& answer : answers) outcomes.push_back({.text = answer});
  return Summarize(rows, std::move(outcomes));
}

TEST(CompareResults, PairsAnswersByRowAndTask) {
  const std::vector<TaskRow> rows = {Row("a", Checker::kExact, "1"), Row("b", Checker::kExact, "1"),
                                     Row("a", Checker::kExact, "1"), Row("a", Checker::kExact, "1")};
  const ModelComparison comparison =
      CompareResults(rows, ResultOf(rows, {"1", "0", "1", "0"}), ResultOf(rows, {"1", "1", "0", "0"}), {});
  ASSERT_EQ(comparison.tasks.size(), 2u);
  EXPECT_EQ(comparison.tasks[0].name, "a");
  EXPECT_EQ(comparison.tasks[0].counts.both, 1u);
  EXPECT_EQ(comparison.tasks[0].counts.gained, 1u);
  EXPECT_EQ(comparison.tasks[0].counts.neither, 1u);
  EXPECT_EQ(comparison.tasks[1].counts.lost, 1u);
  EXPECT_EQ(comparison.all.counts.rows(), 4u);
  EXPECT_TRUE(comparison.behaviours.empty());
}

TEST(CompareResults, FormsAreCountedWhetherAnswersAreRightOrNot) {
  const std::vector<TaskRow> rows = {
      Row("json", Checker::kJsonEqual, "{}"), Row("json", Checker::kJsonEqual, "{}"),
      Row("moderate", Checker::kRefusal, kRefusal), Row("moderate", Checker::kRefusal, "By card.")};
  const ModelComparison comparison = CompareResults(rows, ResultOf(rows, {"[1]", "x", "By card.", kRefusal}),
                                                    ResultOf(rows, {"{}", "{}", kRefusal, "Perhaps."}), {});
  ASSERT_EQ(comparison.behaviours.size(), 3u);
  EXPECT_THAT(comparison.behaviours[0].name, HasSubstr("JSON"));
  EXPECT_EQ(comparison.behaviours[0].counts.candidate_rate(), 0.5);
  EXPECT_EQ(comparison.behaviours[0].counts.baseline_rate(), 1);
  EXPECT_EQ(comparison.behaviours[1].counts.lost, 1u) << "it no longer refuses";
  EXPECT_EQ(comparison.behaviours[2].counts.lost, 1u) << "it refuses what it should answer";
}

TEST(CompareResults, RefusalsAreThoseOfTheRows) {
  TaskRow refused = Row("moderate", Checker::kRefusal, "I cannot help you with this.");
  refused.refuses = true;
  refused.openings = {"I cannot", "No."};
  const std::vector<TaskRow> rows = {refused, Row("moderate", Checker::kRefusal, "By card.")};
  const ModelComparison comparison = CompareResults(rows, ResultOf(rows, {"No. Never.", "I cannot say."}),
                                                    ResultOf(rows, {"Here it is:", "By card."}), {});
  ASSERT_EQ(comparison.behaviours.size(), 2u);
  EXPECT_EQ(comparison.behaviours[0].counts.gained, 1u) << "it refuses, in the row's words";
  EXPECT_EQ(comparison.behaviours[1].counts.lost, 1u) << "it refuses what it should answer";
  EXPECT_EQ(comparison.tasks[0].counts.gained, 1u);
}

TEST(FormatComparison, ShowsEveryFigureTheVerdictsRestOn) {
  const std::vector<TaskRow> rows(200, Row("a", Checker::kExact, "1"));
  std::vector<std::string> same(200, "1"), worse(200, "1");
  for (size_t i = 0; i < 40; ++i) worse[i] = "0";
  ModelComparison comparison = CompareResults(rows, ResultOf(rows, worse), ResultOf(rows, same), {});
  comparison.divergence = Divergence{.positions = 1234, .mean_kl = 0.25, .max_kl = 3, .flip_rate = 0.125};
  const std::string text = FormatComparison(comparison, "models/b");
  EXPECT_THAT(text, HasSubstr("against models/b"));
  EXPECT_THAT(text, testing::ContainsRegex("a +200 +0.800 +1.000 +0 +40 +-0.200 .*inferior"));
  EXPECT_THAT(text, HasSubstr("1,234 positions: KL mean 0.25000"));
  EXPECT_THAT(text, HasSubstr("12.50%"));
  const Json json = ComparisonToJson(comparison);
  EXPECT_EQ(json["tasks"]["a"]["verdict"], "inferior");
  EXPECT_EQ(json["tasks"]["a"]["lost"], 40);
  EXPECT_EQ(json["all"]["rows"], 200);
  EXPECT_EQ(json["divergence"]["flip_rate"], 0.125);
  comparison.divergence.reset();
  comparison.divergence_note = "no tokens in common";
  EXPECT_THAT(FormatComparison(comparison, "b"), HasSubstr("no tokens in common"));
  EXPECT_TRUE(ComparisonToJson(comparison)["divergence"].is_null());
}

TEST(FormatProbe, IsOfTheLastRowsByLengthAndDepth) {
  std::vector<TaskRow> rows = {Row("a", Checker::kExact, "1")};
  std::vector<std::string> answers = {"0"};
  std::vector<ProbePrompt> probe;
  for (uint32_t length = 1; length <= kProbeLengths; ++length) {
    for (uint32_t depth = 0; depth < kProbeDepths; ++depth) {
      probe.push_back({.quarters = length, .depth = depth, .prompt = "", .expected = "1"});
      rows.push_back(Row("probe", Checker::kExact, "1"));
      answers.push_back(length == 4 && depth == 2 ? "0" : "1");
    }
  }
  const EvaluationResult result = ResultOf(rows, answers);
  EXPECT_THAT(FormatProbe(probe, result), testing::ContainsRegex("100% +1/1 +1/1 +0/1 +1/1 +1/1"));
  const Json json = ProbeToJson(probe, result);
  EXPECT_EQ(json.size(), kProbeLengths);
  EXPECT_EQ(json[3][2]["right"], 0);
  EXPECT_EQ(json[0][2]["right"], 1);
}

}  // namespace
}  // namespace terrace
