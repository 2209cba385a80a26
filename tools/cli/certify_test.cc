#include "tools/cli/certify.h"

#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/exit_code.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/command_line.h"
#include "tools/cli/synthesize.h"
#include "tools/cli/test_context.h"
#include "tools/cli/verdict.h"
#include "tools/cli/verify_manifest.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kNano[] = "models/terrace-demo-nano", kNanoGguf[] = "models/terrace-demo-nano.f16.gguf",
               kSmall[] = "models/terrace-demo-small";

std::string Path(const std::string& name) { return fs::path(testing::TempDir()) / name; }

class CertifyTest : public testing::Test {
 protected:
  CertifyTest() {
    for (const char* name : {"gate.private.pem", "gate.public.pem", "m.json", "b.jsonl", "c.jsonl"})
      fs::remove(Path(name));
    CertifyOptions keys;
    keys.make_key = Path("gate");
    CHECK(RunCertify(keys, test_.context).ok());
    options_.evaluate.target.model = kNanoGguf;
    options_.evaluate.target.threads = 1;
    options_.evaluate.target.compute = "f32";
    options_.evaluate.baseline = kNano;
    options_.evaluate.tasks = {"models/eval/classify.jsonl"};
    options_.evaluate.limit = 80;  // LeastRows(0.05, 0.05) is 59
    options_.key = Path("gate.private.pem");
    options_.out = Path("m.json");
  }

  Json Written() const { return Json::parse(*ReadFile(options_.out))["manifest"]; }
  Status Verify(const std::string& model, const std::string& baseline = "") {
    VerifyManifestOptions verify{.file = options_.out, .keys = {Path("gate.public.pem")}};
    verify.model = model;
    verify.baseline = baseline;
    return RunVerifyManifest(verify, test_.context);
  }

  CertifyOptions options_;
  TestContext test_;
};

TEST_F(CertifyTest, TheSameModelInAnotherFormatPasses) {
  const Status status = RunCertify(options_, test_.context);
  ASSERT_TRUE(status.ok()) << status << test_.out.str();
  const Json manifest = Written();
  EXPECT_EQ(manifest["verdict"], "passed");
  EXPECT_EQ(manifest["report"]["comparison"]["tasks"]["classify"]["lost"], 0);
  EXPECT_LT(manifest["report"]["comparison"]["divergence"]["mean_kl"], 1e-6);
  EXPECT_EQ(manifest["report"]["candidate"]["in_process"]["compute"], "f32");
  const auto files = OpenModel(kNanoGguf);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(manifest["candidate"]["model_digest"], files->digest.Hex());
  EXPECT_EQ(manifest["candidate"]["text_digest"], Digest(*files->text).Hex());
  EXPECT_TRUE(Verify("").ok());
  EXPECT_TRUE(Verify(kNanoGguf, kNano).ok());
  for (const Status& refused : {Verify(kSmall), Verify(kNanoGguf, kSmall)})
    EXPECT_EQ(Reason(refused), kAnswerIsNoReason);
  EXPECT_THAT(Message(Verify(kSmall)), HasSubstr("manifest_other_model"));
  EXPECT_THAT(Message(Verify(kNanoGguf, kSmall)), HasSubstr("manifest_other_baseline"));
}

TEST_F(CertifyTest, AModelIsNotCertifiedAgainstItself) {
  options_.evaluate.target.model = kNano;
  const Status status = RunCertify(options_, test_.context);
  EXPECT_EQ(ExitCodeFor(status), kExitUsage) << status;
  EXPECT_EQ(Reason(status), "same_model");
  EXPECT_FALSE(fs::exists(options_.out));
}

TEST_F(CertifyTest, WeakTermsAreShownAndNoTierTakesThemUnasked) {
  options_.evaluate.limit = 6;
  options_.evaluate.comparison.margin = 0.9;
  ASSERT_EQ(RunCertify(options_, test_.context), Status()) << test_.out.str();
  EXPECT_THAT(test_.out.str(), HasSubstr("only with manifest_limits of its own: its margin is 0.9"));
  EXPECT_EQ(Verify(kNanoGguf), Status());
  EXPECT_THAT(test_.out.str(), HasSubstr("1 task, the smallest of 6 rows; margin 0.9, level 0.05"));
  const auto read = ParseManifest(*ReadFile(options_.out));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(Reason(CheckLimits(read->manifest, {})), "manifest_outside_limits");
}

TEST(CertifyOptions, ATiersLimitsAreThoseOfCertifyByItself) {
  const CertifyOptions certify;
  EXPECT_EQ(ManifestLimits().max_margin, certify.evaluate.comparison.margin);
  EXPECT_EQ(ManifestLimits().max_level, certify.evaluate.comparison.level);
  EXPECT_EQ(ManifestLimits().max_mean_kl, certify.thresholds.max_mean_kl);
  EXPECT_EQ(ManifestLimits().max_flip_rate, certify.thresholds.max_flip_rate);
}

TEST_F(CertifyTest, FreeTextAloneIsJudgedByDistributionsAndSaysSo) {
  const std::string file = Path("free.jsonl");
  std::ofstream(file) << R"({"id": "f", "task": "story", "difficulty": 1, "expected": "Once upon a time", )"
                      << R"("checker": "none", "messages": [{"role": "user", "content": "A story."}]})"
                      << "\n";
  options_.evaluate.tasks = {file};
  ASSERT_EQ(RunCertify(options_, test_.context), Status()) << test_.out.str();
  EXPECT_THAT(test_.out.str(), HasSubstr("no answer was checked"));
  EXPECT_THAT(test_.out.str(), HasSubstr("only with manifest_limits of its own: it has no task"));
  EXPECT_EQ(Written()["verdict"], "passed");
  EXPECT_EQ(Written()["report"]["comparison"]["tasks"], Json::object());
  options_.evaluate.divergence = false;
  EXPECT_EQ(Reason(RunCertify(options_, test_.context)), kAnswerIsNoReason) << "nothing is shown";
}

TEST_F(CertifyTest, AWorseModelIsWrittenDownAsFailed) {
  options_.evaluate.target.model = kNano;
  options_.evaluate.baseline = kSmall;
  options_.evaluate.tasks = {"models/eval/rewrite.jsonl"};
  const Status status = RunCertify(options_, test_.context);
  EXPECT_EQ(Reason(status), kAnswerIsNoReason) << status;
  const Json manifest = Written();
  EXPECT_EQ(manifest["verdict"], "failed");
  EXPECT_THAT(manifest["failures"][0].get<std::string>(), HasSubstr("rewrite: "));
  EXPECT_THAT(test_.out.str(), HasSubstr("failed: rewrite: "));
  const Status refused = Verify(kNano);
  EXPECT_EQ(Reason(refused), kAnswerIsNoReason);
  EXPECT_THAT(Message(refused), HasSubstr("manifest_failed"));
}

TEST_F(CertifyTest, AnswersOfAnEndedRunAreNotAskedForAgain) {
  options_.evaluate.records = Path("c.jsonl");
  options_.evaluate.baseline_records = Path("b.jsonl");
  options_.evaluate.limit = 60;
  ASSERT_TRUE(RunCertify(options_, test_.context).ok()) << test_.out.str();
  const Json whole = Written()["report"]["comparison"];
  // All but the head and nine answers of each are lost.
  for (const std::string& file : {options_.evaluate.records, options_.evaluate.baseline_records}) {
    std::istringstream lines(*ReadFile(file));
    std::string kept, line;
    for (int i = 0; i < 10 && std::getline(lines, line); ++i) kept += line + "\n";
    std::ofstream(file, std::ios::binary | std::ios::trunc) << kept << "{\"row\": 5";
  }
  ASSERT_TRUE(RunCertify(options_, test_.context).ok());
  EXPECT_EQ(Written()["report"]["comparison"], whole) << "the same figures, to the bit";
  EvaluateOptions again = options_.evaluate;  // both files are whole now
  again.baseline.clear();
  again.json = true;
  TestContext other;
  ASSERT_TRUE(RunEvaluate(again, other.context).ok());
  EXPECT_EQ(Json::parse(other.out.str())["comparison"]["tasks"], whole["tasks"]);
}

TEST_F(CertifyTest, AProbeIsATaskOfItsOwn) {
  options_.evaluate.limit = 1;
  options_.evaluate.probe = 3;
  options_.evaluate.max_tokens = 16;
  options_.evaluate.probe_tokens = 320;
  options_.evaluate.divergence = false;
  options_.evaluate.comparison.margin = 0.2;
  const Status status = RunCertify(options_, test_.context);
  EXPECT_EQ(Reason(status), kAnswerIsNoReason) << "one row of a task shows nothing";
  const Json report = Written()["report"];
  EXPECT_EQ(report["comparison"]["tasks"]["probe"]["rows"], 60);
  EXPECT_EQ(report["comparison"]["tasks"]["probe"]["verdict"], "non-inferior");
  EXPECT_EQ(report["probe"]["candidate"], report["probe"]["baseline"]);
  EXPECT_THAT(test_.out.str(), HasSubstr("depth 50%"));
}

TEST_F(CertifyTest, AKeyThatCannotSignIsToldBeforeAnythingIsAsked) {
  options_.evaluate.target.model = "/absent";
  options_.key = Path("gate.public.pem");
  EXPECT_EQ(ExitCodeFor(RunCertify(options_, test_.context)), kExitUsage);
  options_.key = "/nowhere.pem";
  EXPECT_EQ(ExitCodeFor(RunCertify(options_, test_.context)), kExitNoInput);
  EXPECT_FALSE(fs::exists(options_.out));
}

TEST_F(CertifyTest, WhatIsWrongWithTheModelsIsToldBeforeAnythingIsAsked) {
  options_.evaluate.tasks = {"/nowhere.jsonl"};  // what would be asked
  SynthesizeOptions other;
  other.out = Path("other.gguf");
  other.shape = "135m";
  other.changes = {
      .layers = 1, .hidden = 64, .heads = 2, .kv_heads = 1, .ffn = 64, .vocab = 300, .context = 64};
  fs::remove(other.out);
  ASSERT_EQ(RunSynthesize(other, test_.context), Status());
  options_.evaluate.target.model = other.out;
  const Status refused = RunCertify(options_, test_.context);
  EXPECT_EQ(ExitCodeFor(refused), kExitUsage) << refused;
  EXPECT_EQ(Reason(refused), "tokenizer_mismatch");
  EXPECT_THAT(Message(refused), HasSubstr("--no-divergence"));
  options_.evaluate.divergence = false;
  EXPECT_THAT(Message(RunCertify(options_, test_.context)), HasSubstr("/nowhere.jsonl")) << "it goes on";
  options_.evaluate.target.model = "/absent.gguf";
  const Status absent = RunCertify(options_, test_.context);
  EXPECT_EQ(ExitCodeFor(absent), kExitNoInput) << absent;
  EXPECT_THAT(Message(absent),
              testing::AllOf(HasSubstr("/absent.gguf"), testing::Not(HasSubstr("--router"))));
}

TEST_F(CertifyTest, KeysAreMadeOnceAndThePrivateOneIsTheOwnersAlone) {
  struct stat found = {};
  ASSERT_EQ(stat(Path("gate.private.pem").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u);
  CertifyOptions keys;
  keys.make_key = Path("gate");
  EXPECT_EQ(RunCertify(keys, test_.context).code(), StatusCode::kUnavailable) << "never over another";
  fs::remove(Path("gate.private.pem"));
  EXPECT_FALSE(RunCertify(keys, test_.context).ok());
  EXPECT_FALSE(fs::exists(Path("gate.private.pem"))) << "no key without its other half";
}

TEST_F(CertifyTest, AFileThatCannotBeWrittenIsToldBeforeAnythingIsAsked) {
  options_.evaluate.target.model = "/absent";
  for (const std::string& out : {testing::TempDir(), std::string("/nowhere/m.json")}) {
    options_.out = out;
    EXPECT_EQ(RunCertify(options_, test_.context).code(), StatusCode::kUnavailable) << out;
  }
}

TEST_F(CertifyTest, WhatIsReadIsNotOverwritten) {
  const std::string key = *ReadFile(options_.key);
  options_.evaluate.baseline_records = Path("b.jsonl");
  for (const std::string& out : {options_.key, options_.evaluate.tasks[0], options_.evaluate.target.model,
                                 options_.evaluate.baseline_records}) {
    options_.out = out;
    const Status status = RunCertify(options_, test_.context);
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << status;
    EXPECT_THAT(Message(status), HasSubstr("would be overwritten"));
  }
  EXPECT_EQ(*ReadFile(options_.key), key);
}

TEST_F(CertifyTest, RowsThatAskTheSameAndTasksLikeTheProbeAreRefused) {
  options_.evaluate.tasks = {"models/eval/classify.jsonl", "models/eval/classify.jsonl"};
  EXPECT_EQ(ExitCodeFor(RunCertify(options_, test_.context)), kExitUsage);
  const std::string file = Path("probe.jsonl");
  std::ofstream(file) << R"({"id": "mine", "task": "probe", "difficulty": 1, "expected": "a", )"
                      << R"("checker": "exact", "messages": [{"role": "user", "content": "b"}]})"
                      << "\n";
  options_.evaluate.tasks = {file};
  options_.evaluate.probe = 1;
  const Status status = RunCertify(options_, test_.context);
  EXPECT_EQ(ExitCodeFor(status), kExitUsage);
  EXPECT_THAT(Message(status), HasSubstr("mine"));
}

TEST(FindFailures, AreThoseOfTasksAndOfDistributions) {
  ModelComparison comparison;
  comparison.tasks = ComparePaired(
      std::vector<NamedCounts>{
          {"good", {.both = 200}}, {"worse", {.both = 150, .lost = 50}}, {"few", {.both = 9}}},
      {});
  comparison.divergence = Divergence{.positions = 9, .mean_kl = 0.05, .flip_rate = 0.2};
  const CertifyThresholds thresholds = {.max_mean_kl = 0.05, .max_flip_rate = 0.1};
  EXPECT_THAT(
      FindFailures(comparison, thresholds, true),
      ElementsAre(HasSubstr("worse: inferior"), HasSubstr("few: undecided"), HasSubstr("flip rate 0.2")));
  EXPECT_EQ(FindFailures(comparison, thresholds, false).size(), 2u);
  comparison.divergence = Divergence{.positions = 0, .mean_kl = std::nan(""), .flip_rate = 0};
  EXPECT_THAT(FindFailures(comparison, thresholds, true),
              ElementsAre(testing::_, testing::_, HasSubstr("no position"), HasSubstr("mean KL")));
  comparison.divergence.reset();
  comparison.divergence_note = "other tokens";
  EXPECT_THAT(FindFailures(comparison, thresholds, true).back(), HasSubstr("other tokens"));
  EXPECT_THAT(FindFailures({}, thresholds, false), ElementsAre(HasSubstr("no row")));
}

TEST(CommandLine, CertifyAndEvaluateReadTheirFlags) {
  const CommandLine line = ParseCommandLine({"certify", "--model",         "c",          "--baseline",
                                             "b",       "--key",           "k.pem",      "--out",
                                             "m.json",  "--tasks",         "t",          "--limit",
                                             "9",       "--margin",        "0.02",       "--level",
                                             "0.1",     "--max-mean-kl",   "0.5",        "--max-flip-rate",
                                             "0.25",    "--probe",         "7",          "--probe-tokens",
                                             "99",      "--save-records",  "r",          "--baseline-records",
                                             "s",       "--no-divergence", "--kv-dtype", "int8"});
  ASSERT_TRUE(line.options.ok()) << line.options.status();
  const auto& options = std::get<CertifyOptions>(*line.options);
  EXPECT_TRUE(options.evaluate.target.is_in_process());
  EXPECT_EQ(options.evaluate.target.kv_dtype, "int8");
  EXPECT_EQ(options.evaluate.baseline, "b");
  EXPECT_THAT(options.evaluate.tasks, ElementsAre("t"));
  EXPECT_EQ(options.evaluate.limit, 9u);
  EXPECT_EQ(options.evaluate.comparison.margin, 0.02);
  EXPECT_EQ(options.evaluate.comparison.level, 0.1);
  EXPECT_EQ(options.thresholds.max_mean_kl, 0.5);
  EXPECT_EQ(options.thresholds.max_flip_rate, 0.25);
  EXPECT_EQ(options.evaluate.probe, 7u);
  EXPECT_EQ(options.evaluate.probe_tokens, 99u);
  EXPECT_EQ(options.evaluate.records, "r");
  EXPECT_EQ(options.evaluate.baseline_records, "s");
  EXPECT_FALSE(options.evaluate.divergence);
  EXPECT_EQ(options.key, "k.pem");
  EXPECT_EQ(options.out, "m.json");
  const CommandLine make = ParseCommandLine({"certify", "--make-key", "gate"});
  ASSERT_TRUE(make.options.ok()) << make.options.status();
  EXPECT_EQ(std::get<CertifyOptions>(*make.options).make_key, "gate");
  const CommandLine verify = ParseCommandLine({"verify-manifest", "m", "--keys", "a", "b", "--model", "c"});
  ASSERT_TRUE(verify.options.ok()) << verify.options.status();
  EXPECT_THAT(std::get<VerifyManifestOptions>(*verify.options).keys, ElementsAre("a", "b"));
  const CommandLine evaluate =
      ParseCommandLine({"evaluate", "--model", "c", "--baseline", "b", "--margin", "0.1"});
  ASSERT_TRUE(evaluate.options.ok()) << evaluate.options.status();
  EXPECT_TRUE(std::get<EvaluateOptions>(*evaluate.options).has_baseline());
}

TEST(CommandLine, CertifyRefusesFlagsThatMakeNoSense) {
  const std::vector<std::vector<std::string>> cases = {
      {"certify"},
      {"certify", "--model", "c", "--baseline", "b", "--key", "k"},
      {"certify", "--model", "c", "--key", "k", "--out", "o"},
      {"certify", "--model", "c", "--baseline", "b", "--out", "o"},
      {"certify", "--make-key", "g", "--model", "c", "--baseline", "b", "--key", "k", "--out", "o"},
      {"certify", "--make-key", "g", "--tasks", "t"},
      {"certify", "--model", "c", "--baseline", "b", "--key", "k", "--out", "o", "--margin", "0"},
      {"certify", "--model", "c", "--baseline", "b", "--key", "k", "--out", "o", "--margin", "1"},
      {"certify", "--model", "c", "--baseline", "b", "--key", "k", "--out", "o", "--margin", "1e-7"},
      {"certify", "--model", "c", "--baseline", "b", "--key", "k", "--out", "o", "--level", "0.5"},
      {"certify", "--model", "c", "--baseline", "b", "--key", "k", "--out", "o", "--level", "1e-300"},
      {"certify", "--model", "c", "--baseline", "b", "--key", "k", "--out", "o", "--max-mean-kl", "nan"},
      {"certify", "--model", "c", "--baseline", "b", "--key", "k", "--out", "o", "--max-flip-rate", "2"},
      {"verify-manifest", "m"},
      {"verify-manifest", "--keys", "k"},
      {"verify-manifest", "m", "--payload", "--model", "c"},
      {"evaluate", "--model", "c", "--baseline", "b", "--compare", "d"},
      {"evaluate", "--model", "c", "--baseline-records", "b", "--compare", "d"},
  };
  for (const auto& arguments : cases) {
    const CommandLine line = ParseCommandLine(arguments);
    ASSERT_FALSE(line.options.ok()) << testing::PrintToString(arguments);
    EXPECT_EQ(ExitCodeFor(line.options.status()), kExitUsage);
  }
}

}  // namespace
}  // namespace terrace
