#include "tools/cli/bench.h"

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/bench/level_result.h"
#include "tools/cli/bench_table.h"
#include "tools/cli/command_line.h"
#include "tools/cli/test_context.h"

namespace terrace {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr char kNano[] = "models/terrace-demo-nano";

StatusOr<BenchOptions> Parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "bench");
  const CommandLine line = ParseCommandLine(arguments);
  RETURN_IF_ERROR(line.options.status());
  return std::get<BenchOptions>(*line.options);
}

TEST(BenchCommandLine, EveryFlagOfAClosedLoopIsRead) {
  const auto options = Parse({"--worker",
                              "h:1",
                              "--concurrency",
                              "1,4,8",
                              "--requests",
                              "24",
                              "--duration",
                              "5m",
                              "--warmup",
                              "3",
                              "--prompt-tokens",
                              "uniform:64-512",
                              "--output-tokens",
                              "lognormal:60,0.5",
                              "--shared-prefix-tokens",
                              "32",
                              "--prefix-groups",
                              "5",
                              "--prefix-zipf",
                              "1.5",
                              "--seed",
                              "9",
                              "--temperature",
                              "0.5",
                              "--priority",
                              "-4",
                              "--cancel-fraction",
                              "0.1",
                              "--deadline",
                              "2.5",
                              "--json",
                              "-"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->worker, "h:1");
  EXPECT_EQ(options->json, "-");
  const BenchSettings& settings = options->settings;
  ASSERT_EQ(settings.levels.size(), 3u);
  EXPECT_EQ(std::get<ClosedLoop>(settings.levels[1]).concurrency, 4u);
  EXPECT_EQ(settings.requests, 24u);
  EXPECT_EQ(settings.duration_seconds, 300);
  EXPECT_EQ(settings.warmup_requests, 3u);
  EXPECT_EQ(settings.temperature, 0.5f);
  EXPECT_EQ(settings.priority, -4);
  EXPECT_EQ(settings.deadline_seconds, 2.5);
  const WorkloadSettings& workload = settings.workload;
  EXPECT_EQ(workload.prompt_tokens.text(), "uniform:64-512");
  EXPECT_TRUE(workload.output_tokens.is_log_normal());
  EXPECT_EQ(workload.shared_prefix_tokens, 32u);
  EXPECT_EQ(workload.prefix_groups, 5u);
  EXPECT_EQ(workload.prefix_zipf, 1.5);
  EXPECT_EQ(workload.seed, 9u);
  EXPECT_EQ(workload.cancel_fraction, 0.1);
}

TEST(BenchCommandLine, ARateIsAnOpenLoop) {
  const auto options = Parse({"--router", "h:1", "--model", "auto", "--rate", "2.5,10", "--arrivals",
                              "constant", "--max-in-flight", "7", "--duration", "30s"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->model, "auto");
  ASSERT_EQ(options->settings.levels.size(), 2u);
  const auto& open = std::get<OpenLoop>(options->settings.levels[1]);
  EXPECT_EQ(open.rate, 10);
  EXPECT_EQ(open.arrivals, ArrivalKind::kConstant);
  EXPECT_EQ(open.max_in_flight, 7u);
  EXPECT_EQ(options->settings.requests, std::nullopt);
}

TEST(BenchCommandLine, TheDefaultIsOneRequestAtATimeForAHundred) {
  const auto options = Parse({"--model", "m"});
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_EQ(options->settings.levels.size(), 1u);
  EXPECT_EQ(std::get<ClosedLoop>(options->settings.levels[0]).concurrency, 1u);
  EXPECT_EQ(options->settings.requests, 100u);
}

TEST(BenchCommandLine, SenselessFlagsAreOneLineUsageErrors) {
  const std::vector<std::vector<std::string>> cases = {
      {},
      {"--model", "m", "--worker", "h:1"},
      {"--router", "h:1", "--worker", "h:1"},
      {"--worker", "h:1", "--threads", "2"},
      {"--worker", "h:1", "--device", "cpu"},
      {"--router", "h:1", "--max-sequences", "2"},
      {"--router", "h"},
      {"--worker", "h:99999"},
      {"--model", "m", "--concurrency", "0"},
      {"--model", "m", "--concurrency", "1,x"},
      {"--model", "m", "--concurrency", "1", "--rate", "1"},
      {"--model", "m", "--rate", "0"},
      {"--model", "m", "--arrivals", "poisson"},
      {"--model", "m", "--rate", "1", "--arrivals", "bursty"},
      {"--model", "m", "--max-in-flight", "3"},
      {"--model", "m", "--requests", "0"},
      {"--model", "m", "--requests", ""},
      {"--model", "m", "--warmup", "-1"},
      {"--model", "m", "--seed", "-1"},
      {"--model", "m", "--json", ""},
      {"--model", "m", "--duration", "soon"},
      {"--model", "m", "--prompt-tokens", "many"},
      {"--model", "m", "--output-tokens", "uniform:9-3"},
      {"--model", "m", "--shared-prefix-tokens", "128"},
      {"--model", "m", "--prefix-groups", "2"},
      {"--model", "m", "--temperature", "3"},
      {"--model", "m", "--priority", "101"},
      {"--model", "m", "--cancel-fraction", "2"},
      {"--model", "m", "--deadline", "0"},
  };
  for (const auto& arguments : cases) {
    const Status status = Parse(arguments).status();
    SCOPED_TRACE(testing::PrintToString(arguments));
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), Not(HasSubstr("\n")));
  }
}

TEST(BenchCommandLine, AnUnknownKindOfArrivalsIsToldTheKinds) {
  EXPECT_THAT(Message(Parse({"--model", "m", "--rate", "1", "--arrivals", "bursty"}).status()),
              HasSubstr("bursty not in {constant,poisson}"));
}

TEST(Bench, AModelInThisProcessIsMeasuredAtEveryLevel) {
  auto options =
      Parse({"--model", kNano, "--threads", "1", "--concurrency", "1,3", "--requests", "6", "--warmup", "2",
             "--prompt-tokens", "20", "--output-tokens", "uniform:3-9", "--json", "-"});
  ASSERT_TRUE(options.ok()) << options.status();
  TestContext test;
  EXPECT_EQ(RunBench(*options, test.context), Status());
  const Json report = Json::parse(test.out.str());
  EXPECT_EQ(report["target"]["model"], "terrace-demo-nano");
  ASSERT_EQ(report["levels"].size(), 2u);
  EXPECT_EQ(report["levels"][0]["requests"]["ok"], 6);
  EXPECT_EQ(report["levels"][0]["short_answers"]["count"], 0);
  EXPECT_EQ(report["levels"][0]["tokens"]["prompt"], 6 * 20);
  EXPECT_EQ(report["levels"][0]["tokens"]["output"], report["levels"][1]["tokens"]["output"]);
  EXPECT_EQ(test.err.str(), "");
}

TEST(Bench, AModelInThisProcessSaysWhatItDrafted) {
  const auto run = [](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"--model",         kNano, "--threads",       "1",
                                          "--requests",      "3",   "--prompt-tokens", "20",
                                          "--output-tokens", "20",  "--json",          "-"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const auto options = Parse(arguments);
    EXPECT_TRUE(options.ok()) << options.status();
    TestContext test;
    EXPECT_EQ(RunBench(*options, test.context), Status());
    return Json(Json::parse(test.out.str())["levels"][0]["speculation"]);
  };
  const Json off = run({});
  EXPECT_EQ(off["verified"], 0);
  EXPECT_TRUE(off["acceptance"].is_null());
  EXPECT_TRUE(off["engine"].is_null());
  const Json on = run({"--drafter", "model", "--draft-model", kNano});
  EXPECT_GT(on["accepted"], 0);
  EXPECT_LE(on["accepted"], on["verified"]);
  const Json& engine = on["engine"];
  EXPECT_EQ(engine["drafter"], "model");
  EXPECT_EQ(engine["failures"], 0);
  EXPECT_GT(engine["passes"], 0);
  EXPECT_GT(engine["drafting_seconds"], 0);
  EXPECT_GT(engine["positions"]["1"]["verified"], 0);
}

TEST(Bench, LengthsThatNeverFitAreRefusedBeforeAnythingIsSent) {
  const auto options = Parse({"--model", kNano, "--prompt-tokens", "100000"});
  ASSERT_TRUE(options.ok()) << options.status();
  TestContext test;
  EXPECT_EQ(RunBench(*options, test.context).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(test.out.str(), "");
}

TEST(Bench, NoAnswerAtAllIsAnErrorAfterTheReport) {
  const auto options = Parse({"--model", kNano, "--requests", "2", "--deadline", "0.000001ms"});
  ASSERT_TRUE(options.ok()) << options.status();
  TestContext test;
  const Status status = RunBench(*options, test.context);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("deadline_exceeded"));
  EXPECT_THAT(test.out.str(), HasSubstr("2 failed, deadline_exceeded"));
}

TEST(BenchTable, SaysWhatAReaderMustKnow) {
  LevelResult level;
  level.shape = OpenLoop{.rate = 2.5, .arrivals = ArrivalKind::kConstant};
  level.planned = 10;
  level.ok = 4;
  level.failed = 1;
  level.dropped = 5;
  level.seconds = 8;
  level.output_tokens = 80;
  level.failures["overloaded"] = {.count = 1, .example = "inbox full"};
  level.short_answers = 1;
  level.short_answer_examples = {{.request = 3, .wanted_tokens = 32, .tokens = 5}};
  level.cut_requests = 2;
  level.send_lag.Record(std::chrono::milliseconds(50));
  level.is_interrupted = true;
  level.unfinished = 2;
  level.speculation.Add(8, 6);
  BenchSettings settings;
  settings.levels = {level.shape};
  const std::string text = FormatBenchReport(settings, {.kind = "worker", .name = "h:1"}, {level});
  for (const char* wanted :
       {"worker h:1", "constant arrivals", "1 failed, overloaded: inbox full",
        "5 of 10 requests were not sent, for --max-in-flight 1024 were", "request 3: 5 of 32 tokens",
        "2 requests drawn longer", "50.0 ms late", "2 did not end", "10.0",
        "2.5 requests/s: drafts: 8 tokens verified, 6 accepted (75.0%)"}) {
    EXPECT_THAT(text, HasSubstr(wanted));
  }
}

}  // namespace
}  // namespace terrace
