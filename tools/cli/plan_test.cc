#include "tools/cli/plan.h"

#include <filesystem>
#include <functional>
#include <initializer_list>

#include "base/exit_code.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/launch/cluster_plan.h"
#include "tools/cli/new_file.h"
#include "tools/cli/plan_config.h"
#include "tools/cli/plan_measure.h"
#include "tools/cli/plan_table.h"
#include "tools/cli/test_context.h"
#include "tools/cli/verdict.h"
#include "tools/report/report.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class PlanCommand : public testing::Test {
 protected:
  PlanCommand() {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    options_.target.model = "models/terrace-demo-nano";
    options_.target.threads = 1;
    options_.target.device = "cpu";
    options_.usd_per_hour = 0.1;
    options_.max_sequences = 4;
    options_.probe_repeats = 1;
    options_.work = folder_ / "work";
    options_.out = folder_ / "plan.yaml";
    options_.traffic = {.prompt_tokens = LengthDistribution::Fixed(24),
                        .output_tokens = LengthDistribution::Fixed(8),
                        .load = ClosedLoop{2},
                        .requests = 8};
  }

  // As the report has a model.
  static TechniqueRow RowOf(const std::string& name, const std::string& model) {
    const ModelFiles files = OpenModel(model).value();
    TechniqueRow row{.name = name, .model = "m"};
    row.model_digest = files.digest.Hex();
    row.text_digest = Digest(*files.text).Hex();
    row.compute = "auto";
    row.kv_dtype = "f32";
    row.drafter = "none";
    row.tasks = {{.name = "t", .rows = 10, .right = 9}};
    return row;
  }

  // Of terrace-demo-nano as it is, with a drafter that is right half of the time; with smaller keys and
  // values; and as the first tier of a cascade.
  std::string Report() const {
    TechniqueRow row = RowOf("drafted", options_.target.model);
    row.drafter = "ngram";
    row.speeds = {
        {.batch = 4, .prefill_tokens_per_second = 1, .decode_tokens_per_second = 1, .acceptance = 0.5}};
    TechniqueRow small_kv = row;
    small_kv.name = "kv-int8";
    small_kv.drafter = "none";
    small_kv.kv_dtype = "int8";
    small_kv.shift = DistributionShift{.positions = 400, .mean_kl = 0.0004, .flip_rate = 0.0125};
    TechniqueRow cascade{.name = "baseline+small@-0.5", .is_cascade = true};
    cascade.tasks = {{.name = "t", .rows = 10, .right = 10}};
    cascade.first_tier_share = 0.5;
    TechniqueReport report;
    report.rows = {RowOf("baseline", options_.target.model), RowOf("small", kSmall), row, small_kv, cascade};
    const std::string file = folder_ / "report.json";
    CHECK(ReplaceFile(file, ReportToJson(report).dump()).ok());
    return file;
  }

  static constexpr char kSmall[] = "models/terrace-demo-small";
  const fs::path folder_ = fs::path(testing::TempDir()) / "plan";
  PlanOptions options_;
  TestContext test_;
};

TEST_F(PlanCommand, WritesAClusterOfTheBestAndComparesItWithWhatIsMeasured) {
  options_.techniques = {"q8_0", "kv-int8"};
  options_.verify = true;
  const Status status = RunPlan(options_, test_.context);
  ASSERT_TRUE(status.ok()) << status;
  const std::string out = test_.out.str();
  EXPECT_THAT(out, Not(HasSubstr("µUSD"))) << "one unit in a column";
  for (const char* text : {"baseline", "q8_0", "kv-int8", "to be measured", "inter-token p99", "predicted",
                           "weights and KV pool", "resident memory", "a million tokens", "as measured, it "})
    EXPECT_THAT(out, HasSubstr(text));
  const auto cluster = PlanFromFile(options_.out);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_EQ(cluster->workers.size(), 1u);
  EXPECT_FALSE(cluster->workers[0].tier.empty());
  EXPECT_TRUE(OpenModel(cluster->workers[0].config.model()).ok());
  EXPECT_EQ(cluster->workers[0].config.engine().max_sequences(), 4u);
}

TEST(MeasuredVerdict, IsNoWhereALimitIsBrokenAndNamesTheFile) {
  EXPECT_EQ(MeasuredVerdict({}, "plan.yaml"), Status());
  const Status broken = MeasuredVerdict({"memory", "price"}, "plan.yaml");
  EXPECT_EQ(Reason(broken), kAnswerIsNoReason);
  EXPECT_EQ(Message(broken), "--verify: what was measured breaks 2 limits; plan.yaml was written before");
}

TEST_F(PlanCommand, WhatNothingKeepsIsAnAnswerAndNoFile) {
  options_.constraints.inter_token_p99_seconds = 1e-9;
  const Status status = RunPlan(options_, test_.context);
  EXPECT_EQ(Reason(status), kAnswerIsNoReason) << status;
  EXPECT_THAT(test_.out.str(), HasSubstr("breaks: inter-token p99"));
  EXPECT_FALSE(fs::exists(options_.out));
}

TEST_F(PlanCommand, AReportSaysWhatAnswersAreWorthAndHowOftenDraftsAreRight) {
  options_.variants = {{.name = "drafted", .model = options_.target.model, .drafter = "ngram"}};
  options_.constraints.min_accuracy = 0.8;
  EXPECT_EQ(Reason(RunPlan(options_, test_.context)), kAnswerIsNoReason) << "nothing was measured";
  EXPECT_THAT(test_.out.str(), HasSubstr("drafted: left out"));
  options_.report = Report();
  TestContext known;
  ASSERT_TRUE(RunPlan(options_, known.context).ok());
  EXPECT_THAT(known.out.str(), Not(HasSubstr("left out")));
  EXPECT_THAT(known.out.str(), HasSubstr("0.900"));
}

TEST_F(PlanCommand, SmallerKeysAndValuesAreSuggestedWhereTheMemoryIsShortAndJudgedByAReport) {
  constexpr char kHint[] = "smaller keys and values hold more of them";
  options_.max_sequences = 16;
  options_.traffic.prompt_tokens = LengthDistribution::Fixed(150);  // 8 of them are more than a context
  options_.traffic.load = ClosedLoop{8};
  options_.constraints.memory_bytes = 1;
  EXPECT_EQ(Reason(RunPlan(options_, test_.context)), kAnswerIsNoReason);
  EXPECT_THAT(test_.out.str(), HasSubstr(kHint));
  options_.techniques = {"kv-int8"};
  options_.report = Report();
  TestContext considered;
  EXPECT_EQ(Reason(RunPlan(options_, considered.context)), kAnswerIsNoReason);
  EXPECT_THAT(considered.out.str(), Not(HasSubstr(kHint)));
  EXPECT_THAT(considered.out.str(), HasSubstr("KL 0.000400 nats, another likeliest one at 1.25% of the"));
  options_.techniques.clear();
  options_.constraints = {};
  TestContext roomy;
  ASSERT_TRUE(RunPlan(options_, roomy.context).ok());
  EXPECT_THAT(roomy.out.str(), Not(HasSubstr(kHint)));
}

TEST(FormatDrafts, ComparesTheShareOfDraftsWithWhatWasPlanned) {
  EXPECT_EQ(FormatDrafts(0.5, {}), "") << "nothing was drafted";
  EXPECT_EQ(FormatDrafts(0.5, {.verified = 200, .accepted = 20}),
            "drafts: planned with 0.50 of them accepted; 0.10 of 200 drafted tokens were\n");
}

TEST_F(PlanCommand, CombinationsArePlannedBesideTheirParts) {
  options_.techniques = {"q8_0", "kv-int8"};
  options_.combine = true;
  ASSERT_TRUE(RunPlan(options_, test_.context).ok()) << test_.out.str();
  EXPECT_THAT(test_.out.str(), HasSubstr("q8_0.kv-int8"));
  options_.variants = {{.name = "q8_0.kv-int8", .model = options_.target.model}};
  EXPECT_THAT(Message(RunPlan(options_, test_.context)), HasSubstr("two plans are named q8_0.kv-int8"));
}

TEST_F(PlanCommand, ACascadeIsPlannedFromTheSharesOfAReport) {
  options_.variants = {{.name = "small", .model = kSmall}};
  options_.cascades = {{.tiers = {"baseline", "small"}, .thresholds = {-0.5, -0.25}}};
  options_.report = Report();
  options_.constraints.min_accuracy = 0.95;
  options_.verify = true;
  const Status status = RunPlan(options_, test_.context);
  EXPECT_EQ(Reason(status), "not_verified") << status << test_.out.str();
  EXPECT_EQ(Message(status), "not verified: baseline+small@-0.5 is a cascade, which is not run here");
  EXPECT_EQ(ExitCodeFor(status), kExitUnavailable) << "neither yes nor no";
  EXPECT_THAT(test_.out.str(), HasSubstr("1 + 1"));
  EXPECT_THAT(test_.out.str(), HasSubstr("baseline+small@-0.25: left out"));
  EXPECT_THAT(test_.out.str(), Not(HasSubstr("as measured"))) << "nothing else keeps every constraint";
  const auto cluster = PlanFromFile(options_.out);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  EXPECT_EQ(cluster->workers.size(), 2u);
  EXPECT_EQ(cluster->router.policies(0).cascade().steps(0).min_mean_logprob(), -0.5);
  for (const v1::TierConfig& tier : cluster->router.tiers())
    EXPECT_GT(tier.usd_per_million_completion_tokens(), 0);
}

TEST_F(PlanCommand, WhereTheBestIsNotRunHereTheBestThatCanBeIsAndThatVerifiesNothing) {
  const std::string base = "models/terrace-demo-base";
  TechniqueRow large = RowOf("large", base), cascade{.name = "baseline+large@-0.5", .is_cascade = true};
  large.tasks = cascade.tasks = {{.name = "t", .rows = 10, .right = 10}};
  TechniqueReport report;  // two machines at the speed of nano cost less than one at that of base
  report.rows = {RowOf("baseline", options_.target.model), large, cascade};
  options_.report = folder_ / "report.json";
  ASSERT_TRUE(ReplaceFile(options_.report, ReportToJson(report).dump()).ok());
  options_.variants = {{.name = "large", .model = base}};
  options_.cascades = {{.tiers = {"baseline", "large"}, .thresholds = {-0.5}}};
  options_.constraints.min_accuracy = 0.95;
  options_.verify = true;
  const Status status = RunPlan(options_, test_.context);
  EXPECT_EQ(Reason(status), "not_verified") << status;
  EXPECT_EQ(Message(status),
            "not verified: baseline+large@-0.5 is a cascade, which is not run here; large was");
  EXPECT_THAT(test_.out.str(), HasSubstr("not verified: baseline+large@-0.5 is a cascade"));
  EXPECT_THAT(test_.out.str(), HasSubstr("as measured, it keeps to its limits"));
  ASSERT_TRUE(PlanFromFile(options_.out).ok());
  EXPECT_EQ(PlanFromFile(options_.out)->workers.size(), 2u) << "the file is the best's";
}

TEST_F(PlanCommand, ACascadeOfOtherEnginesThanTheReportHasIsLeftOut) {
  options_.cascades = {{.tiers = {"baseline", "small"}, .thresholds = {-0.5}}};
  options_.report = Report();
  const ReportVariant others[] = {{.name = "small", .model = options_.target.model},
                                  {.name = "small", .model = kSmall, .kv_dtype = "int8"}};
  for (const ReportVariant& other : others) {
    options_.variants = {other};
    TestContext test;
    ASSERT_TRUE(RunPlan(options_, test.context).ok());
    EXPECT_THAT(test.out.str(),
                HasSubstr("baseline+small@-0.5: left out: the report has it of another small: "));
  }
}

TEST_F(PlanCommand, AReplacedDraftersModelDoesNotKeepItsAcceptance) {
  const std::string draft = folder_ / "draft";
  fs::copy(options_.target.model, draft);
  TechniqueRow row = RowOf("drafted", options_.target.model);
  row.drafter = "model";
  row.draft_model = draft;
  row.draft_model_digest = OpenModel(draft).value().digest.Hex();
  row.speeds = {
      {.batch = 4, .prefill_tokens_per_second = 1, .decode_tokens_per_second = 1, .acceptance = 0.5}};
  TechniqueReport report;
  report.rows = {row};
  options_.report = folder_ / "report.json";
  ASSERT_TRUE(ReplaceFile(options_.report, ReportToJson(report).dump()).ok());
  options_.variants = {
      {.name = "drafted", .model = options_.target.model, .drafter = "model", .draft_model = draft}};
  ASSERT_TRUE(RunPlan(options_, test_.context).ok());
  EXPECT_THAT(test_.out.str(), Not(HasSubstr("left out")));
  fs::remove_all(draft);
  fs::copy(kSmall, draft);
  TestContext replaced;
  ASSERT_TRUE(RunPlan(options_, replaced.context).ok());
  EXPECT_THAT(replaced.out.str(), HasSubstr("drafted: left out"));
  EXPECT_THAT(replaced.out.str(), HasSubstr("has another model that drafts"));
}

TEST_F(PlanCommand, RanksOfThisMachineAreConsideredWithWhatTheyTellEachOther) {
  options_.ranks = {1, 2};
  ASSERT_TRUE(RunPlan(options_, test_.context).ok());
  EXPECT_THAT(test_.out.str(), HasSubstr("baseline-tp2"));
  EXPECT_THAT(test_.out.str(), HasSubstr("against: a step of 4 decodes takes"));
  EXPECT_THAT(test_.out.str(), HasSubstr("what 2 ranks tell each other"));

  options_.ranks = {2, 16};
  options_.verify = true;
  TestContext only;
  const Status status = RunPlan(options_, only.context);
  EXPECT_EQ(Message(status), "not verified: baseline-tp2 is a group of 2 ranks, which is not run here");
  EXPECT_THAT(only.out.str(), HasSubstr("baseline-tp16: left out: "));
  const auto cluster = PlanFromFile(options_.out);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_EQ(cluster->workers.size(), 1u);
  EXPECT_EQ(cluster->workers[0].ranks(), 2u);
  EXPECT_EQ(cluster->workers[0].config.engine().device(), "cpu");
}

TEST_F(PlanCommand, WhereEverythingIsLeftOutTheAnswerIsNo) {
  options_.ranks = {16};
  EXPECT_EQ(Reason(RunPlan(options_, test_.context)), kAnswerIsNoReason);
  EXPECT_THAT(test_.out.str(), HasSubstr("2 attention heads are not a multiple of 16 ranks"));
}

TEST_F(PlanCommand, ATraceIsPlannedFor) {
  options_.trace = folder_ / "trace.jsonl";
  ASSERT_TRUE(ReplaceFile(options_.trace,
                          R"({"arrival": 0, "prompt_tokens": 24, "output_tokens": 8}
{"arrival": 0.1, "prompt_tokens": 40, "output_tokens": 4, "prefix": "a", "prefix_tokens": 16}
)")
                  .ok());
  const Status status = RunPlan(options_, test_.context);
  ASSERT_TRUE(status.ok()) << status << test_.out.str();
  EXPECT_TRUE(PlanFromFile(options_.out).ok());
}

TEST_F(PlanCommand, WhatMakesNoSenseIsAnErrorThatNamesIt) {
  const struct {
    std::function<void(PlanOptions&)> change;
    const char* error;
    int exit_code;
  } cases[] = {
      {[](PlanOptions& o) { o.target.model = "/absent"; }, "/absent", kExitNoInput},
      {[](PlanOptions& o) { o.report = "/absent.json"; }, "/absent.json", kExitNoInput},
      {[](PlanOptions& o) { o.trace = "/absent.jsonl"; }, "/absent.jsonl", kExitNoInput},
      {[](PlanOptions& o) { o.trace = "models/eval/classify.jsonl"; }, "classify.jsonl:1: ", kExitData},
      {[](PlanOptions& o) {
         o.ranks = {2, 2};
       },
       "two plans are named baseline-tp2", kExitUsage},
      {[](PlanOptions& o) { o.report = "models/eval/classify.jsonl"; }, "classify.jsonl", kExitData},
      {[](PlanOptions& o) {
         o.techniques = {"q8_0", "q8_0"};
       },
       "two plans are named q8_0", kExitUsage},
      {[](PlanOptions& o) { o.techniques = {"magic"}; }, "magic", kExitUsage},
      {[](PlanOptions& o) {
         o.cascades = {{.tiers = {"nano", "baseline"}, .thresholds = {-1}}};
       },
       "no plan is named nano", kExitUsage},
      {[](PlanOptions& o) {
         o.techniques = {"q8_0", "q4_0"};
         o.cascades = {{.tiers = {"q4_0", "q8_0", "baseline"}, .thresholds = {-1}}};
       },
       "of two tiers, not 3", kExitUsage},
      {[](PlanOptions& o) { o.variants = {{.name = "a", .model = "/absent"}}; }, "a: ", kExitNoInput},
      {[](PlanOptions& o) {
         o.variants = {{.name = "a", .model = o.target.model, .compute = "f64"}};
         o.target.model = "/absent";
       },
       "a: compute \"f64\"", kExitUsage},
      {[](PlanOptions& o) { o.techniques = {"int4-awq"}; }, "int4-awq: needs calibration", kExitUsage},
      {[](PlanOptions& o) {
         o.techniques = {"q8_0"};
         o.work = "/proc/nowhere";
         o.report = "/absent.json";
       },
       "--work", kExitUnavailable},
      {[](PlanOptions& o) { o.out = "/proc/nowhere.yaml"; }, "/proc/nowhere.yaml", kExitUnavailable},
  };
  for (const auto& each : cases) {
    PlanOptions options = options_;
    each.change(options);
    TestContext test;
    const Status status = RunPlan(options, test.context);
    EXPECT_EQ(ExitCodeFor(status), each.exit_code) << status;
    EXPECT_THAT(Message(status), HasSubstr(each.error));
  }
}

TEST(MeasureWorker, TheMemoryThatItTakesIsSeenFromOutside) {
  WorkerRun run;
  run.engine.model = "models/terrace-demo-base";
  run.engine.threads = 1;
  run.engine.device = "cpu";
  run.engine.max_sequences = 4;
  run.traffic = {.prompt_tokens = LengthDistribution::Fixed(200),
                 .output_tokens = LengthDistribution::Fixed(8),
                 .load = ClosedLoop{4},
                 .requests = 8};
  const auto measured = MeasureWorker(run);
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_EQ(measured->result.ok, 8u);
  ASSERT_TRUE(measured->resident_bytes.has_value());
  // All weights are touched, 5.2 MiB, and of the KV pool what four sequences of 208 tokens hold.
  EXPECT_GT(*measured->resident_bytes, (uint64_t{5} << 20) + 4 * 208 * 5120);
  EXPECT_LT(*measured->resident_bytes, measured->allocated_bytes + (uint64_t{64} << 20));
}

PlannedServing PlanOf(std::initializer_list<uint32_t> workers) {
  PlannedServing plan;
  plan.usd_per_million_tokens = 2.5;
  for (const uint32_t count : workers) {
    ServingTier& tier = plan.tiers.emplace_back();
    tier.workers = count;
    tier.settings = {.max_sequences = 8, .max_step_tokens = 256, .kv_tokens = 1024};
  }
  return plan;
}

PlannedWorker WorkerOf(const std::string& name) {
  return {.name = name,
          .model = "/" + name,
          .kv_dtype = "int8",
          .device = "cpu",
          .compute = "auto",
          .threads = 2,
          .drafter = "model",
          .draft_model = "/d",
          .kv_bytes_per_token = 100,
          .draft_kv_bytes_per_token = 10};
}

TEST(ClusterOf, HasEachWorkerOfATierAndItsDrafter) {
  PlannedServing plan = PlanOf({3});
  plan.tiers[0].settings.drafts = {.acceptance = 0.5, .length = 4};
  const PlannedWorker worker = WorkerOf("a");
  v1::ClusterFile file = ClusterOf(plan, {&worker, 1}, 0);
  ASSERT_EQ(file.workers_size(), 3);
  EXPECT_EQ(file.router().tiers(0).workers_size(), 3);
  EXPECT_EQ(file.router().tiers(0).usd_per_million_prompt_tokens(), 2.5);
  EXPECT_EQ(file.router().policies_size(), 0);
  EXPECT_NE(file.workers(0).grpc(), file.workers(2).grpc());
  EXPECT_EQ(file.workers(1).kv().pool_bytes(), 102'400u);
  EXPECT_EQ(file.workers(1).kv().dtype(), "int8");
  EXPECT_EQ(file.workers(1).engine().speculation().model(), "/d");
  EXPECT_EQ(file.workers(1).engine().speculation().max_tokens(), 4u) << "as long as was planned";
  EXPECT_EQ(file.workers(1).engine().speculation().kv_pool_bytes(), 10'240u);
  plan.tiers[0].settings.drafts.length = 0;
  file = ClusterOf(plan, {&worker, 1}, 0);
  EXPECT_FALSE(file.workers(0).engine().has_speculation()) << "it makes nothing faster";
}

TEST(ClusterOf, AWorkerOfSeveralRanksIsAGroupThatSharesTheThreads) {
  PlannedWorker worker = WorkerOf("a");
  worker.drafter = "none";
  worker.device = "auto";
  worker.ranks = 4;
  const v1::ClusterFile file = ClusterOf(PlanOf({2}), {&worker, 1}, 0);
  ASSERT_EQ(file.workers_size(), 2);
  for (const v1::WorkerConfig& config : file.workers()) {
    EXPECT_EQ(config.group().ranks(), 4u);
    EXPECT_EQ(config.engine().threads(), 1u) << "of two, one each";
    EXPECT_EQ(config.engine().device(), "cpu");
    EXPECT_EQ(config.kv().pool_bytes(), 102'400u) << "of each rank";
  }
  worker.ranks = 1;
  EXPECT_FALSE(ClusterOf(PlanOf({1}), {&worker, 1}, 0).workers(0).has_group());
}

TEST(ClusterOf, OfACascadeHasATierForEachAndAPolicy) {
  const PlannedWorker workers[] = {WorkerOf("small"), WorkerOf("large")};
  PlannedServing plan = PlanOf({1, 2});
  plan.tiers[0].kept = 0.75;
  const v1::ClusterFile file = ClusterOf(plan, workers, -0.25);
  ASSERT_EQ(file.workers_size(), 3);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(file.router().tiers(i).usd_per_million_prompt_tokens(),
              TierPrice(plan, static_cast<size_t>(i)));
    EXPECT_EQ(file.router().tiers(i).usd_per_million_completion_tokens(),
              file.router().tiers(i).usd_per_million_prompt_tokens());
  }
  EXPECT_EQ(file.workers(0).model(), "/small");
  EXPECT_EQ(file.workers(2).model(), "/large");
  EXPECT_EQ(file.router().tiers(1).workers(1), file.workers(2).grpc());
  const v1::CascadeConfig& cascade = file.router().policies(0).cascade();
  ASSERT_EQ(cascade.steps_size(), 2);
  EXPECT_EQ(cascade.steps(0).min_mean_logprob(), -0.25);
  EXPECT_FALSE(cascade.steps(1).has_min_mean_logprob());
  EXPECT_EQ(file.router().default_model(), file.router().policies(0).name());
}

}  // namespace
}  // namespace terrace
