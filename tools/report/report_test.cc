#include "tools/report/report.h"

#include <functional>
#include <iterator>

#include "base/exit_code.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/report/testing_rows.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(Frontier, HasWhatNothingBeatsTheCheapestFirst) {
  const TechniqueRow rows[] = {RowOf("dear", 5, 90),   RowOf("worse", 5, 80), RowOf("cheap", 1, 60),
                               RowOf("middle", 2, 70), RowOf("same", 3, 70),  RowOf("twin", 2, 70),
                               RowOf("dearest", 9, 90)};
  EXPECT_THAT(Frontier(rows), ElementsAre(2, 3, 0));
  EXPECT_THAT(Frontier(std::span(rows).first(1)), ElementsAre(0));
  EXPECT_TRUE(Frontier({}).empty());
}

TEST(AccuracyOf, HasAnIntervalThatHoldsIt) {
  for (const uint64_t right : {0, 1, 50, 99, 100}) {
    const EstimatedRate rate = AccuracyOf(right, 100);
    EXPECT_EQ(rate.value, static_cast<double>(right) / 100);
    EXPECT_LE(rate.low, rate.value);
    EXPECT_GE(rate.high, rate.value);
    EXPECT_LT(rate.high - rate.low, 0.21);
  }
  EXPECT_EQ(AccuracyOf(0, 0).high, 1);
}

TechniqueReport SmallReport() {
  TechniqueReport report{.tool = "terrace 1",
                         .created = "2026-11-27T15:00:00Z",
                         .processor = "a \"processor\"",
                         .cores = 2,
                         .usd_per_hour = 0.1,
                         .task_files = {"a.jsonl", "b.jsonl"},
                         .task_set_digest = "d",
                         .limit = 3,
                         .max_tokens = 128,
                         .speed_tokens = 64,
                         .level = 0.05};
  TechniqueRow full = RowOf("base", 3, 90);
  full.speeds = {{.batch = 1, .prefill_tokens_per_second = 1000, .decode_tokens_per_second = 10},
                 {.batch = 16, .prefill_tokens_per_second = 2000, .decode_tokens_per_second = 50}};
  full.weight_bytes = 12345678901;
  full.price.tokens = {0.5, 1.5};
  TechniqueRow drafted = RowOf("base.ngram", 2, 91);
  drafted.speeds = full.speeds;
  drafted.speeds[0].acceptance = 0.25;
  drafted.draft_model_digest = "draft";
  drafted.against_baseline = {.difference = 0.01, .low = -0.1, .high = 0.1, .gained = 2, .lost = 1};
  drafted.shift = {.positions = 7, .mean_kl = 0.125, .flip_rate = 0.5};
  TechniqueRow cascade = RowOf("a+b@-0.1", 1, 88);
  cascade.is_cascade = true;
  cascade.first_tier_share = 0.75;
  report.rows = {full, drafted, cascade};
  return report;
}

TEST(Report, IsReadAsItWasWritten) {
  const Json json = ReportToJson(SmallReport());
  const auto read = ParseReport(json.dump(2));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(ReportToJson(*read), json);
  EXPECT_EQ(json["rows"][1]["speeds"][0]["acceptance"], 0.25);
  EXPECT_EQ(json["rows"][0]["accuracy"], 0.9);
  EXPECT_EQ(json["rows"][1]["draft_model_digest"], "draft");
  EXPECT_FALSE(json["rows"][0].contains("shift")) << "absent is not measured";
}

TEST(Report, OfBeforeHasNoDigestOfADraftersModel) {
  Json json = ReportToJson(SmallReport());
  for (Json& row : json["rows"]) row.erase("draft_model_digest");
  const auto read = ParseReport(json.dump());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->rows[1].draft_model_digest, "");
}

TEST(Report, WhatIsOtherwiseIsMalformed) {
  const struct {
    const char* what;
    std::function<void(Json&)> change;
    const char* error;
  } cases[] = {
      {"another format", [](Json& json) { json["format"] = "terrace-report-2"; }, "terrace-report-1"},
      {"no rows", [](Json& json) { json["rows"] = Json::array(); }, "rows: there is none"},
      {"a row twice", [](Json& json) { json["rows"][1]["name"] = "base"; }, "base is there twice"},
      {"an unknown member", [](Json& json) { json["rows"][2]["taste"] = 1; }, "rows[2]: unknown member"},
      {"a missing member", [](Json& json) { json["rows"][0].erase("model"); }, "rows[0]: \"model\""},
      {"more right than rows", [](Json& json) { json["rows"][0]["tasks"][0]["right"] = 101; }, "101 right"},
      {"a speed of 0", [](Json& json) { json["rows"][0]["speeds"][0]["batch"] = 0; }, "above 0"},
      {"a name that is none", [](Json& json) { json["rows"][0]["name"] = "a/b"; }, "a/b"},
      {"a file that is no text", [](Json& json) { json["task_files"][0] = 1; }, "task_files"},
  };
  for (const auto& each : cases) {
    Json json = ReportToJson(SmallReport());
    each.change(json);
    const auto read = ParseReport(json.dump());
    ASSERT_FALSE(read.ok()) << each.what;
    EXPECT_EQ(ExitCodeFor(read.status()), kExitData) << each.what;
    EXPECT_THAT(Message(read.status()), HasSubstr(each.error)) << each.what;
  }
  EXPECT_FALSE(ParseReport("{").ok());
  EXPECT_FALSE(ParseReport("[]").ok());
}

TEST(HistoryOf, IsTheLeastPriceOfEachQualityInEachReport) {
  TechniqueReport first = SmallReport(), later = SmallReport();
  first.rows = {RowOf("a", 4, 90), RowOf("b", 2, 80), RowOf("c", 1, 70)};
  later.rows = {RowOf("a", 3, 90), RowOf("d", 1.5, 85)};
  const TechniqueReport reports[] = {first, later};
  const auto history = HistoryOf(reports, {});
  ASSERT_TRUE(history.ok()) << history.status();
  ASSERT_EQ(history->size(), 3u);
  const struct {
    double accuracy;
    const char *first, *later;
    double first_price, later_price;
  } want[] = {{0.7, "c", "d", 1, 1.5}, {0.8, "b", "d", 2, 1.5}, {0.9, "a", "a", 4, 3}};
  for (size_t i = 0; i < std::size(want); ++i) {
    const PriceHistory& got = (*history)[i];
    EXPECT_EQ(got.accuracy, want[i].accuracy);
    ASSERT_TRUE(got.prices[0].has_value() && got.prices[1].has_value());
    EXPECT_EQ(got.prices[0]->name, want[i].first);
    EXPECT_EQ(got.prices[1]->name, want[i].later);
    EXPECT_EQ(got.prices[0]->usd_per_thousand_answers, want[i].first_price);
    EXPECT_EQ(got.prices[1]->usd_per_thousand_answers, want[i].later_price);
  }
  EXPECT_FALSE(HistoryOf(reports, {0.95})->front().prices[1].has_value()) << "nothing is so good";
}

TEST(HistoryOf, ReportsOfOtherTasksHaveNoCommonHistory) {
  TechniqueReport tasks = SmallReport(), length = SmallReport();
  tasks.task_set_digest = "e";
  length.max_tokens = 7;
  for (const TechniqueReport& other : {tasks, length}) {
    const TechniqueReport reports[] = {SmallReport(), other};
    EXPECT_EQ(ExitCodeFor(HistoryOf(reports, {}).status()), kExitUsage);
  }
}

}  // namespace
}  // namespace terrace
