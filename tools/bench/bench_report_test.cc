#include "tools/bench/bench_report.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/bench/load_run.h"
#include "tools/bench/simulated_target.h"

namespace terrace {
namespace {

using testing::UnorderedElementsAre;

std::set<std::string> Keys(const Json& object) {
  std::set<std::string> keys;
  for (const auto& [key, value] : object.items()) keys.insert(key);
  return keys;
}

// Two levels against a target that caches half of each prompt and stops one answer early.
Json Report(const BenchSettings& settings) {
  const auto time = std::make_shared<SimulatedTime>();
  SimulatedTarget target(time, [](const BenchRequest& request) {
    SimulatedAnswer answer{.cached_tokens = static_cast<uint32_t>(request.prompt.size() / 2)};
    if (request.id == "bench-1-0") answer.tokens = 1;
    if (request.id == "bench-1-1") answer.status = WithReason(Internal("NaN"), "numeric_error");
    return answer;
  });
  const auto workload = Workload::Make(settings.workload, target.vocabulary(), 0);
  std::vector<LevelResult> levels;
  for (uint32_t i = 0; i < settings.levels.size(); ++i)
    levels.push_back(RunLoad(target, *workload, settings, {.level = i}, time));
  return BenchReportToJson(settings, target.description(), levels);
}

BenchSettings TwoLevels() {
  BenchSettings settings;
  settings.levels = {ClosedLoop{1}, ClosedLoop{4}};
  settings.requests = 20;
  settings.workload.seed = 42;
  return settings;
}

TEST(BenchReport, HasEverySettingTheTargetAndTheLevels) {
  const Json report = Report(TwoLevels());
  EXPECT_THAT(Keys(report),
              UnorderedElementsAre("format", "version", "percentiles", "target", "settings", "levels"));
  EXPECT_EQ(report["format"], "terrace-bench-1");
  EXPECT_EQ(report["target"]["model"], "simulated");
  EXPECT_TRUE(report["target"]["device"].is_null());
  EXPECT_THAT(Keys(report["settings"]),
              UnorderedElementsAre("requests", "duration_seconds", "warmup_requests", "prompt_tokens",
                                   "output_tokens", "shared_prefix_tokens", "prefix_groups", "prefix_zipf",
                                   "cancel_fraction", "seed", "temperature", "priority", "deadline_seconds",
                                   "ignore_eos"));
  EXPECT_EQ(report["settings"]["seed"], 42);
  EXPECT_EQ(report["settings"]["prompt_tokens"], "128");
  EXPECT_TRUE(report["settings"]["duration_seconds"].is_null());
  ASSERT_EQ(report["levels"].size(), 2u);
}

TEST(BenchReport, ALevelAddsUp) {
  const Json report = Report(TwoLevels());
  for (const Json& level : report["levels"]) {
    EXPECT_THAT(Keys(level), UnorderedElementsAre("load", "interrupted", "requests", "failures", "seconds",
                                                  "requests_per_second", "prompt_tokens_per_second",
                                                  "output_tokens_per_second", "output_ratio_to_first_level",
                                                  "tokens", "speculation", "output_tokens_per_request",
                                                  "short_answers", "latency_seconds"));
    const Json& requests = level["requests"];
    EXPECT_EQ(requests["planned"], requests["ok"].get<int>() + requests["failed"].get<int>() +
                                       requests["cancelled"].get<int>() + requests["dropped"].get<int>() +
                                       requests["unfinished"].get<int>());
    EXPECT_EQ(level["tokens"]["cached_share"], 0.5);
    EXPECT_NEAR(level["output_tokens_per_second"],
                level["tokens"]["output"].get<double>() / level["seconds"].get<double>(), 1e-6);
    for (const auto& [name, latency] : level["latency_seconds"].items()) {
      EXPECT_THAT(Keys(latency), UnorderedElementsAre("count", "mean", "p50", "p90", "p95", "p99", "max"))
          << name;
      EXPECT_LE(latency["p50"], latency["p99"]) << name;
      EXPECT_LE(latency["p99"], latency["max"]) << name;
    }
  }
  const Json& second = report["levels"][1];
  EXPECT_EQ(report["levels"][0]["output_ratio_to_first_level"], 1);
  EXPECT_GT(second["output_ratio_to_first_level"], 3);
  EXPECT_EQ(second["load"], (Json{{"kind", "closed"}, {"concurrency", 4}}));
  EXPECT_EQ(second["failures"],
            (Json::array({{{"reason", "numeric_error"}, {"count", 1}, {"example", "NaN"}}})));
  EXPECT_EQ(second["short_answers"]["count"], 1);
  EXPECT_EQ(second["short_answers"]["examples"][0],
            (Json{{"request", 0}, {"wanted_tokens", 64}, {"tokens", 1}}));
}

TEST(BenchReport, AnOpenLoopSaysItsRateAndDrops) {
  BenchSettings settings = TwoLevels();
  settings.levels = {OpenLoop{.rate = 100, .arrivals = ArrivalKind::kConstant, .max_in_flight = 2}};
  const Json level = Report(settings)["levels"][0];
  EXPECT_EQ(level["load"],
            (Json{{"kind", "open"}, {"rate", 100.0}, {"arrivals", "constant"}, {"max_in_flight", 2}}));
  EXPECT_GT(level["requests"]["dropped"], 0);
}

TEST(BenchReport, SaysOfEachLevelWhatWasDrafted) {
  const auto time = std::make_shared<SimulatedTime>();
  SimulatedTarget target(
      time, [](const BenchRequest&) { return SimulatedAnswer{.speculated = 4, .accepted_speculated = 3}; });
  BenchSettings settings = TwoLevels();
  settings.warmup_requests = 5;
  const auto workload = Workload::Make(settings.workload, target.vocabulary(), 0);
  RunLoad(target, *workload, settings, {.level = 0, .is_warmup = true}, time);
  const LevelResult elsewhere = RunLoad(target, *workload, settings, {.level = 0}, time);
  target.drafted = SpeculationStats{.drafter = "ngram", .verified = {100}, .passes = 100};  // before it
  const LevelResult here = RunLoad(target, *workload, settings, {.level = 0}, time);
  const Json report = BenchReportToJson(settings, target.description(), {elsewhere, here});
  for (const Json& level : report["levels"]) {
    EXPECT_EQ(level["speculation"]["verified"], 20 * 4);
    EXPECT_EQ(level["speculation"]["accepted"], 20 * 3);
    EXPECT_EQ(level["speculation"]["acceptance"], 0.75);
  }
  EXPECT_TRUE(report["levels"][0]["speculation"]["engine"].is_null());
  const Json& engine = report["levels"][1]["speculation"]["engine"];
  EXPECT_EQ(engine["drafter"], "ngram");
  EXPECT_EQ(engine["passes"], 20) << "those of this level";
  EXPECT_EQ(engine["tokens_per_pass"], 4);
  EXPECT_EQ(engine["positions"]["1"]["verified"], 20 * 4);
}

TEST(BenchReport, ALevelWithoutAnswersHasNoNumberThatIsNotOne) {
  const Json report = BenchReportToJson(TwoLevels(), {}, {LevelResult{}, LevelResult{}});
  EXPECT_TRUE(report["levels"][1]["tokens"]["cached_share"].is_null());
  EXPECT_EQ(report["levels"][1]["output_tokens_per_second"], 0);
  EXPECT_EQ(report["levels"][1]["output_ratio_to_first_level"], 0);
  EXPECT_TRUE(report["levels"][1]["latency_seconds"]["queue"].is_null());
}

}  // namespace
}  // namespace terrace
