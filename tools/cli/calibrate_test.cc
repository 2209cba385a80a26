#include "tools/cli/calibrate.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "base/exit_code.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/tier/testing_records.h"
#include "text/text_assets.h"
#include "tools/cli/command_line.h"
#include "tools/cli/test_context.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kNano[] = "models/terrace-demo-nano";

std::string PathOf(const std::string& name) { return std::filesystem::path(testing::TempDir()) / name; }

std::string WriteRecords(const std::string& name, size_t rows, uint64_t seed) {
  std::ofstream(PathOf(name)) << RecordsText(DrawRecords(rows, seed));
  return PathOf(name);
}

Answer AnswerWith(const std::vector<std::vector<double>>& probabilities) {  // of each token's alternatives
  Answer answer;
  for (const auto& alternatives : probabilities) {
    v1::OutputToken token;
    token.set_logprob(static_cast<float>(std::log(alternatives[0])));
    for (const double each : alternatives) token.add_top()->set_logprob(static_cast<float>(std::log(each)));
    answer.tokens.push_back(token);
  }
  return answer;
}

TEST(SignalsOf, AreThoseOfTheAlternatives) {
  const auto signals = SignalsOf(AnswerWith({{0.5, 0.25, 0.25}, {0.75, 0.25}}));
  ASSERT_TRUE(signals.ok()) << signals.status();
  EXPECT_EQ(signals->tokens, 2u);
  EXPECT_NEAR(signals->mean_logprob, (std::log(0.5) + std::log(0.75)) / 2, 1e-6);
  EXPECT_NEAR(signals->min_margin, std::log(2), 1e-6);
  EXPECT_NEAR(signals->mean_margin, (std::log(2) + std::log(3)) / 2, 1e-6);
  EXPECT_NEAR(signals->first_entropy, 1.5 * std::log(2), 1e-6);
  // What is not sent is at least as surprising as the last that was.
  const double least = -0.5 * std::log(0.5) - 0.5 * std::log(0.125);
  const double all = -0.5 * std::log(0.5) - 0.125 * std::log(0.125) - 0.375 * std::log(0.125 / 2);
  const auto cut = SignalsOf(AnswerWith({{0.5, 0.125}}));
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_NEAR(cut->first_entropy, least, 1e-6);
  EXPECT_LE(cut->first_entropy, all);
  EXPECT_EQ(SignalsOf(AnswerWith({{0.5, 0.25}, {0.5}})).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(SignalsOf(Answer()).status().code(), StatusCode::kFailedPrecondition);
}

TEST(DescribeServedTier, IsWhatItsReadyReplicasServe) {
  const auto replica = [](const char* state, const char* digest) {
    return Json{{"state", state}, {"model_digest", digest}, {"text_digest", Concat("text of ", digest)}};
  };
  const Json tiers[] = {
      {{"name", "nano"}, {"replicas", Json::array({replica("silent", "old"), replica("ready", "new")})}},
      {{"name", "base"}, {"replicas", Json::array({replica("connecting", "")})}}};
  const Json statusz = {{"tiers", Json::array({tiers[0], tiers[1]})}};
  const auto nano = DescribeServedTier(statusz, "nano");
  ASSERT_TRUE(nano.ok()) << nano.status();
  EXPECT_EQ(nano->model_digest, "new");
  EXPECT_EQ(nano->text_digest, "text of new");
  EXPECT_EQ(DescribeServedTier(statusz, "base").status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(DescribeServedTier(statusz, "small").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(DescribeServedTier(Json::object(), "nano").status().code(), StatusCode::kDataLoss);
}

TEST(ChooseFeatures, GroupsHaveEveryFeatureOnceAndTheDefaultsAreWhatTheRouterTakes) {
  const auto all = ChooseFeatures({"signals", "prompt", "derived", "agreement"}, CalibrationKind::kCascade);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->size(), AllFeatures().size());
  EXPECT_EQ(std::set<const Feature*>(all->begin(), all->end()).size(), all->size());
  for (const CalibrationKind kind : {CalibrationKind::kCascade, CalibrationKind::kClassifier}) {
    const auto chosen = ChooseFeatures({}, kind);
    ASSERT_TRUE(chosen.ok() && !chosen->empty());
    for (const Feature* feature : *chosen) {
      EXPECT_NE(feature->source, FeatureSource::kDerived) << feature->name;
      EXPECT_NE(feature->source, FeatureSource::kAgreement) << feature->name;
      EXPECT_TRUE(kind == CalibrationKind::kCascade || feature->source == FeatureSource::kPrompt)
          << feature->name;
    }
  }
  EXPECT_THAT(ChooseFeatures({"min_margin"}, CalibrationKind::kCascade).value(),
              ElementsAre(*FindFeature("min_margin")));
  const std::vector<std::vector<std::string>> wrongs = {
      {"luck"}, {"signals", "min_margin"}, {"prompt", "prompt"}};
  for (const auto& wrong : wrongs) {
    EXPECT_EQ(ChooseFeatures(wrong, CalibrationKind::kCascade).status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(Calibrate, FromRecordsWritesAFileThatTheRouterReads) {
  CalibrateOptions options;
  options.records = {WriteRecords("tune.jsonl", 600, /*seed=*/1)};
  options.calibration.features = {"mean_logprob", "min_margin"};
  options.calibration.report = WriteRecords("test.jsonl", 200, /*seed=*/2);
  options.calibration.out = PathOf("auto.json");
  TestContext test;
  const Status status = RunCalibrate(options, test.context);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(test.out.str(), AllOf(HasSubstr("chosen"), HasSubstr("report on 200 rows"), HasSubstr("oracle"),
                                    HasSubstr("base only"), HasSubstr("wrote " + options.calibration.out)));
  const auto calibration = ParseCalibration(ReadFile(options.calibration.out).value());
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_EQ(calibration->kind, CalibrationKind::kCascade);
  EXPECT_EQ(calibration->policy, "auto");
  EXPECT_EQ(calibration->evidence.data_digest, HashBytes(ReadFile(options.records[0]).value()).Hex());
}

TEST(TrainRouter, WritesAClassifier) {
  TrainRouterOptions options;
  options.records = {WriteRecords("tune.jsonl", 600, /*seed=*/3)};
  options.calibration.out = PathOf("by-prompt.json");
  TestContext test;
  const Status status = RunTrainRouter(options, test.context);
  ASSERT_TRUE(status.ok()) << status;
  const auto calibration = ParseCalibration(ReadFile(options.calibration.out).value());
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_EQ(calibration->kind, CalibrationKind::kClassifier);
}

TEST(TrainRouter, MayReadTheFirstToken) {
  TrainRouterOptions options;
  options.records = {WriteRecords("tune.jsonl", 600, /*seed=*/3)};
  options.calibration.features = {"prompt", "first_token"};
  options.calibration.limit.epsilon = 0.1;
  options.calibration.out = PathOf("begun.json");
  TestContext test;
  const Status status = RunTrainRouter(options, test.context);
  ASSERT_TRUE(status.ok()) << status;
  const auto calibration = ParseCalibration(ReadFile(options.calibration.out).value());
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_EQ(calibration->kind, CalibrationKind::kClassifier);
  size_t of_first_token = 0;
  for (const ScoredFeature& each : calibration->steps[0].gate->scorer.features) {
    EXPECT_TRUE(IsReadByGates(*each.feature)) << each.feature->name;
    of_first_token += each.feature->source == FeatureSource::kFirstToken;
  }
  EXPECT_EQ(of_first_token, 3u);
}

TEST(Calibrate, WhatTheRouterWouldNotReadIsRefusedBeforeAnyWork) {
  TestContext test;
  CalibrateOptions options;
  options.records = {"/nowhere.jsonl"};  // is not looked at
  for (const char* features : {"derived", "agreement", "sum_logprob"}) {
    options.calibration.features = {"signals", features};
    options.calibration.out = PathOf("unread.json");
    const Status status = RunCalibrate(options, test.context);
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << features;
    EXPECT_THAT(Message(status), HasSubstr("--features"));
    options.calibration.out = "";
    EXPECT_EQ(ExitCodeFor(RunCalibrate(options, test.context)), kExitNoInput) << "tables alone may";
  }
  TrainRouterOptions train;
  train.records = {"/nowhere.jsonl"};
  for (const char* features : {"signals", "min_margin", "derived"}) {
    train.calibration.features = {features};
    EXPECT_EQ(ExitCodeFor(RunTrainRouter(train, test.context)), kExitUsage) << features;
  }
}

TEST(Calibrate, WhatIsReadIsNotOverwritten) {
  TestContext test;
  CalibrateOptions options;
  options.records = {WriteRecords("tune.jsonl", 10, /*seed=*/1)};
  options.calibration.report = WriteRecords("test.jsonl", 10, /*seed=*/2);
  for (const std::string& file : {options.records[0], options.calibration.report}) {
    const std::string before = *ReadFile(file);
    options.calibration.out = file;
    const Status status = RunCalibrate(options, test.context);
    EXPECT_EQ(ExitCodeFor(status), kExitUsage);
    EXPECT_THAT(Message(status), HasSubstr("would be overwritten"));
    EXPECT_EQ(*ReadFile(file), before);
  }
  TrainRouterOptions train;
  train.records = options.records;
  train.calibration.out = train.records[0];
  EXPECT_EQ(ExitCodeFor(RunTrainRouter(train, test.context)), kExitUsage);
  CalibrateOptions ask;
  ask.tasks = {PathOf("tasks.jsonl")};
  std::ofstream(ask.tasks[0]) << *ReadFile("models/eval/validation.jsonl");
  ask.ask.tiers = {Concat("one=", kNano)};
  ask.save_records = ask.tasks[0];
  EXPECT_EQ(ExitCodeFor(RunCalibrate(ask, test.context)), kExitUsage);
}

TEST(Calibrate, FilesThatAreNoRecordsAreNamedByLine) {
  CalibrateOptions options;
  options.records = {PathOf("broken.jsonl")};
  std::ofstream(options.records[0]) << "{}\n";
  TestContext test;
  Status status = RunCalibrate(options, test.context);
  EXPECT_EQ(ExitCodeFor(status), kExitData);
  EXPECT_THAT(Message(status), HasSubstr("line 1"));
  options.records = {"/nowhere.jsonl"};
  EXPECT_EQ(ExitCodeFor(RunCalibrate(options, test.context)), kExitNoInput);
}

TEST(ReadRecords, SeveralFilesOfTheSameTiersAreOne) {
  const Records all = DrawRecords(30, /*seed=*/4);
  std::vector<std::string> paths;
  for (const size_t part : {0u, 1u, 2u}) {
    Records each{.tiers = all.tiers,
                 .rows = {all.rows.begin() + 10 * part, all.rows.begin() + 10 * (part + 1)}};
    std::string text = RecordsText(each);
    if (part == 1) text.pop_back();  // the last line need not end
    paths.push_back(PathOf(Concat("part-", part, ".jsonl")));
    std::ofstream(paths.back()) << text;
  }
  const auto text = ReadRecords(paths);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, RecordsText(all));
  const std::string twice[] = {paths[0], paths[1], paths[0]};
  EXPECT_EQ(ExitCodeFor(ReadRecords({std::begin(twice), std::end(twice)}).status()), kExitUsage);
  for (size_t tier = 0; tier < all.tiers.size(); ++tier) {
    Records other = all;
    other.tiers[tier].model_digest += "'";
    const std::string path = PathOf("other.jsonl");
    std::ofstream(path) << RecordsText(other);
    const Status status = ReadRecords({paths[0], path}).status();
    EXPECT_EQ(ExitCodeFor(status), kExitUsage);
    EXPECT_THAT(Message(status), HasSubstr("other.jsonl"));
  }
}

TEST(AskTiers, AModelAgreesWithItselfAsADraft) {
  auto rows = LoadTaskFile("models/eval/validation.jsonl");
  ASSERT_TRUE(rows.ok()) << rows.status();
  rows->resize(6);
  rows->back().checker = Checker::kNone;
  AskTiersOptions options;
  options.tiers = {Concat("one=", kNano), Concat("other=", kNano)};
  options.target.threads = 1;
  options.target.compute = "f32";
  options.concurrency = 3;
  TestContext test;
  const auto records = AskTiers(*rows, options, test.context);
  ASSERT_TRUE(records.ok()) << records.status();
  const auto files = OpenModel(kNano);
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(records->tiers.size(), 2u);
  EXPECT_EQ(records->tiers[1].name, "other");
  for (const RecordedTier& tier : records->tiers) {
    EXPECT_EQ(tier.model_digest, files->digest.Hex());
    EXPECT_EQ(tier.text_digest, Digest(*files->text).Hex());
    EXPECT_GT(tier.parameters, 0u);
  }
  EXPECT_EQ(records->rows.size(), 5u) << "the row without a checker is left out";
  for (const Record& record : records->rows) {
    ASSERT_EQ(record.answers.size(), 2u);
    const AnswerSignals& signals = record.answers[0].signals;
    EXPECT_GT(signals.tokens, 0u);
    EXPECT_LE(signals.min_logprob, signals.mean_logprob);
    EXPECT_LE(signals.mean_logprob, 0);
    EXPECT_GE(signals.min_margin, 0) << "greedy";
    EXPECT_GE(signals.mean_entropy, 0);
    EXPECT_EQ(signals.mean_logprob, record.answers[1].signals.mean_logprob) << "the same bits";
    EXPECT_EQ(record.answers[0].is_right, record.answers[1].is_right);
    EXPECT_EQ(record.answers[0].draft_agreement, 0);
    EXPECT_EQ(record.answers[1].draft_agreement, 1);
    EXPECT_GT(record.prompt.bytes, 0u);
  }
}

TEST(AskTiers, ARunThatWasEndedGoesOnToTheSameRecords) {
  auto rows = LoadTaskFile("models/eval/validation.jsonl");
  ASSERT_TRUE(rows.ok()) << rows.status();
  rows->resize(4);
  AskTiersOptions options;
  options.tiers = {Concat("one=", kNano), Concat("other=", kNano)};
  options.target.threads = 1;
  options.concurrency = 2;
  options.max_tokens = 16;
  TestContext test;
  const auto whole = AskTiers(*rows, options, test.context);
  ASSERT_TRUE(whole.ok()) << whole.status();
  options.journal = PathOf("records.jsonl.journal");
  std::filesystem::remove(options.journal);
  const auto kept = AskTiers(*rows, options, test.context);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(RecordsText(*kept), RecordsText(*whole));
  const std::string text = ReadFile(options.journal).value();
  for (size_t lines = 0, end = 0; end != std::string::npos; ++lines, end = text.find('\n', end + 1)) {
    if (lines % 3 != 1) continue;  // behind the head, and within both tiers
    std::ofstream(options.journal, std::ios::binary | std::ios::trunc) << text.substr(0, end + 1);
    const auto again = AskTiers(*rows, options, test.context);
    ASSERT_TRUE(again.ok()) << lines << ": " << again.status();
    EXPECT_EQ(RecordsText(*again), RecordsText(*whole)) << "after " << lines << " lines";
  }
  options.max_tokens = 1;
  EXPECT_EQ(ExitCodeFor(AskTiers(*rows, options, test.context).status()), kExitConfig);
}

TEST(AskTiers, ADrafterChangesNoRecord) {
  auto rows = LoadTaskFile("models/eval/validation.jsonl");
  ASSERT_TRUE(rows.ok()) << rows.status();
  rows->resize(4);
  AskTiersOptions options;
  options.tiers = {Concat("one=", kNano)};
  options.target.threads = 1;
  TestContext test;
  const auto without = AskTiers(*rows, options, test.context);
  ASSERT_TRUE(without.ok()) << without.status();
  options.target.drafter = "model";
  options.target.draft_model = kNano;
  const auto with = AskTiers(*rows, options, test.context);
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_EQ(RecordsText(*with), RecordsText(*without));
}

TEST(CommandLine, CalibrateAndTrainRouterReadTheirFlags) {
  const CommandLine line = ParseCommandLine({"calibrate",
                                             "--tiers",
                                             "nano,small=models/s,base",
                                             "--router",
                                             "h:1",
                                             "--drafter",
                                             "model",
                                             "--draft-model",
                                             "models/d",
                                             "--tasks",
                                             "a",
                                             "b",
                                             "--save-records",
                                             "r",
                                             "--epsilon",
                                             "0.02",
                                             "--delta",
                                             "0.2",
                                             "--starts",
                                             "3",
                                             "--policy",
                                             "p",
                                             "--features",
                                             "prompt,min_margin",
                                             "--target",
                                             "no_worse",
                                             "--fit-share",
                                             "0.25",
                                             "--seed",
                                             "7",
                                             "--report",
                                             "t",
                                             "--out",
                                             "o"});
  ASSERT_TRUE(line.options.ok()) << line.options.status();
  const auto& options = std::get<CalibrateOptions>(*line.options);
  EXPECT_THAT(options.ask.tiers, ElementsAre("nano", "small=models/s", "base"));
  EXPECT_EQ(options.ask.target.router, "h:1");
  EXPECT_EQ(options.ask.target.drafter, "model");
  EXPECT_EQ(options.ask.target.draft_model, "models/d");
  EXPECT_THAT(options.tasks, ElementsAre("a", "b"));
  EXPECT_EQ(options.save_records, "r");
  EXPECT_EQ(options.calibration.limit.epsilon, 0.02);
  EXPECT_EQ(options.calibration.limit.delta, 0.2);
  EXPECT_EQ(options.calibration.limit.starts, 3u);
  EXPECT_EQ(options.calibration.policy, "p");
  EXPECT_THAT(options.calibration.features, ElementsAre("prompt", "min_margin"));
  EXPECT_EQ(options.calibration.target, ScoreTarget::kNoWorse);
  EXPECT_EQ(options.calibration.fit_share, 0.25);
  EXPECT_EQ(options.calibration.seed, 7u);
  EXPECT_EQ(options.calibration.report, "t");
  EXPECT_EQ(options.calibration.out, "o");
  const CommandLine train = ParseCommandLine({"train-router", "--records", "r", "s", "--seed", "7"});
  ASSERT_TRUE(train.options.ok()) << train.options.status();
  EXPECT_THAT(std::get<TrainRouterOptions>(*train.options).records, ElementsAre("r", "s"));
}

TEST(CommandLine, CalibrateRefusesFlagsThatMakeNoSense) {
  const std::vector<std::vector<std::string>> cases = {
      {"calibrate"},
      {"calibrate", "--records", "r", "--tiers", "a,b"},
      {"calibrate", "--records", "r", "--tasks", "t"},  // nobody is asked
      {"calibrate", "--records", "r", "--drafter", "ngram"},
      {"calibrate", "--tiers", "a,b", "--drafter", "oracle"},
      {"calibrate", "--tiers", "a,b", "--draft-model", "d"},
      {"calibrate", "--records", "r", "--epsilon", "1.5"},
      {"calibrate", "--records", "r", "--delta", "x"},
      {"calibrate", "--records", "r", "--starts", "0"},
      {"calibrate", "--records", "r", "--target", "luck"},
      {"train-router"},
      {"train-router", "--tiers", "a,b"},
  };
  for (const auto& arguments : cases) {
    const CommandLine line = ParseCommandLine(arguments);
    ASSERT_FALSE(line.options.ok()) << testing::PrintToString(arguments);
    EXPECT_EQ(ExitCodeFor(line.options.status()), kExitUsage);
    EXPECT_EQ(line.command, arguments[0]);
  }
  for (const char* command : {"calibrate", "train-router"}) {
    const CommandLine help = ParseCommandLine({command, "--help"});
    ASSERT_TRUE(help.options.ok()) << help.options.status();
    EXPECT_THAT(std::get<ShowText>(*help.options).text, HasSubstr(Concat(": terrace ", command)));
  }
}

}  // namespace
}  // namespace terrace
