#include "tools/cli/report.h"

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "base/exit_code.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/new_file.h"
#include "tools/cli/test_context.h"
#include "tools/optimize/model_shapes.h"
#include "tools/optimize/prune.h"
#include "tools/optimize/quantize.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"
#include "tools/report/pricing.h"
#include "tools/report/report.h"
#include "tools/report/speed_meter.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

void ExpectNear(double value, double want) { EXPECT_NEAR(value, want, 1e-9 * want); }  // of other sums

class ReportCommand : public testing::Test {
 protected:
  ReportCommand() {
    fs::remove_all(options_.work);
    options_.evaluate.target.model = "models/terrace-demo-nano";
    options_.evaluate.target.threads = 1;
    options_.evaluate.target.device = "cpu";
    options_.evaluate.tasks = {"models/eval/classify.jsonl", "models/eval/rewrite.jsonl"};
    options_.evaluate.limit = 6;
    options_.evaluate.max_tokens = 32;
    options_.usd_per_hour = 0.1;
    options_.batches = {1, 2};
    options_.speed_tokens = 8;
    options_.speed_seconds = 0;
    options_.speed_passes = 1;
  }

  TechniqueReport Run() {
    TestContext test;
    const Status status = RunReport(options_, test.context);
    CHECK(status.ok(), Message(status));
    told_ = test.err.str();
    auto report = ParseReport(*ReadFile(options_.work + "/report.json"));
    CHECK(report.ok(), Message(report.status()));
    EXPECT_THAT(test.out.str(), HasSubstr(*ReadFile(options_.work + "/report.md")));
    return *std::move(report);
  }

  ReportOptions options_ = {.work = (fs::path(testing::TempDir()) / "report").string()};
  std::string told_;
};

TEST_F(ReportCommand, ARowThatWasKeptWithoutTheDigestOfItsDraftersModelIsMeasuredAgain) {
  const std::string nano = options_.evaluate.target.model;
  options_.speed_tokens = 64;  // a step gives several
  options_.variants = {{.name = "drafted", .model = nano, .drafter = "model", .draft_model = nano}};
  const TechniqueReport report = Run();
  EXPECT_EQ(report.rows[0].draft_model_digest, "");
  EXPECT_EQ(report.rows[1].draft_model_digest, report.rows[0].model_digest);
  for (const auto& file : fs::directory_iterator(options_.work + "/rows")) {
    Json row = Json::parse(*ReadFile(file.path()));
    row.erase("draft_model_digest");
    ASSERT_TRUE(ReplaceFile(file.path(), row.dump()).ok());
  }
  EXPECT_EQ(Run().rows[1].draft_model_digest, report.rows[0].model_digest);
  EXPECT_THAT(told_, HasSubstr("baseline: kept"));
  EXPECT_THAT(told_, Not(HasSubstr("drafted: kept")));
}

TEST_F(ReportCommand, MeasuresEveryRowAndKeepsWhatIsMeasured) {
  options_.techniques = {"q8_0", "kv-int8", "ngram"};
  options_.variants = {{.name = "small", .model = "models/terrace-demo-small.f16.gguf"}};
  options_.cascades = {{.tiers = {"baseline", "small"}, .thresholds = {-1000, 0}}};
  const TechniqueReport report = Run();
  ASSERT_EQ(report.rows.size(), 7u);
  EXPECT_THAT(report.task_files, ElementsAre("classify.jsonl", "rewrite.jsonl"));
  const TechniqueRow &baseline = report.rows[0], &q8 = report.rows[1], &kv = report.rows[2],
                     &ngram = report.rows[3], &small = report.rows[4], &all_first = report.rows[5],
                     &all_last = report.rows[6];
  for (const TechniqueRow& row : report.rows) EXPECT_EQ(row.rows(), 12u) << row.name;

  EXPECT_FALSE(baseline.against_baseline.has_value() || baseline.shift.has_value());
  EXPECT_LT(q8.weight_bytes, baseline.weight_bytes);
  ASSERT_TRUE(q8.shift.has_value());
  EXPECT_GT(q8.shift->mean_kl, 0);
  EXPECT_LT(q8.shift->mean_kl, 0.05);
  EXPECT_LT(kv.kv_bytes_per_token, baseline.kv_bytes_per_token / 3);
  EXPECT_EQ(kv.model_digest, baseline.model_digest);
  EXPECT_TRUE(kv.shift.has_value()) << "of other keys and values";
  EXPECT_EQ(ngram.drafter, "ngram");
  EXPECT_FALSE(ngram.shift.has_value()) << "drafts change no distribution";
  EXPECT_EQ(ngram.against_baseline->gained + ngram.against_baseline->lost, 0u) << "nor answers";

  for (const TechniqueRow* row : {&baseline, &q8, &kv, &ngram, &small}) {
    const TokenPrice price = PriceOfTokens(0.1, row->speeds);
    EXPECT_EQ(row->price.tokens.usd_per_million_prompt_tokens, price.usd_per_million_prompt_tokens);
    const double usd =
        (price.usd_per_million_prompt_tokens * static_cast<double>(row->prompt_tokens) +
         price.usd_per_million_completion_tokens * static_cast<double>(row->completion_tokens)) /
        1e6;
    ExpectNear(row->price.usd_per_thousand_answers, usd / 12 * 1e3);
  }
  EXPECT_EQ(all_first.first_tier_share, 1);
  EXPECT_EQ(all_first.accuracy().value, baseline.accuracy().value);
  EXPECT_DOUBLE_EQ(all_first.price.usd_per_thousand_answers, baseline.price.usd_per_thousand_answers);
  EXPECT_EQ(all_last.first_tier_share, 0);
  EXPECT_EQ(all_last.accuracy().value, small.accuracy().value);
  ExpectNear(all_last.price.usd_per_thousand_answers,
             baseline.price.usd_per_thousand_answers + small.price.usd_per_thousand_answers);
  EXPECT_EQ(all_last.weight_bytes, baseline.weight_bytes + small.weight_bytes);
  EXPECT_THAT(*ReadFile(options_.work + "/report.svg"), HasSubstr("baseline+small@-1000"));
  EXPECT_THAT(told_, Not(HasSubstr("kept")));

  options_.usd_per_hour = 0.2;
  const TechniqueReport again = Run();
  for (const char* name : {"baseline", "q8_0", "kv-int8", "ngram", "small"})
    EXPECT_THAT(told_, HasSubstr(Concat(name, ": kept from an earlier run")));
  for (size_t i = 0; i < report.rows.size(); ++i) {
    Json before = RowToJson(report.rows[i]), after = RowToJson(again.rows[i]);
    EXPECT_DOUBLE_EQ(after["price"]["usd_per_thousand_answers"].get<double>(),
                     2 * before["price"]["usd_per_thousand_answers"].get<double>());
    before.erase("price");
    after.erase("price");
    EXPECT_EQ(after, before) << "the same measurement";
  }

  TestContext test;
  ReportOptions history;
  history.history = {options_.work + "/report.json", options_.work + "/report.json"};
  ASSERT_TRUE(RunReport(history, test.context).ok());
  EXPECT_THAT(test.out.str(), HasSubstr("$0.2 an hour"));
  EXPECT_THAT(test.out.str(), Not(HasSubstr("µUSD"))) << "one unit in a column";
  EXPECT_THAT(*ReadFile(options_.work + "/report.md"), Not(HasSubstr("µUSD")));
}

TEST_F(ReportCommand, Fp8AndAMixtureAreRowsLikeTheOthers) {
  options_.techniques = {"int4-rtn", "mixed", "fp8"};
  options_.calibration = {.path = "models/eval/calibration.jsonl", .samples = 8};
  const TechniqueReport report = Run();
  ASSERT_EQ(report.rows.size(), 4u);
  const TechniqueRow &int4 = report.rows[1], &mixed = report.rows[2], &fp8 = report.rows[3];
  EXPECT_EQ(mixed.name, "mixed");
  EXPECT_EQ(fp8.name, "fp8");
  for (const TechniqueRow* row : {&mixed, &fp8}) {
    ASSERT_TRUE(row->shift.has_value()) << row->name;
    EXPECT_GT(row->shift->mean_kl, 0);
    EXPECT_THAT(*ReadFile(options_.work + "/report.md"), HasSubstr(row->name));
    EXPECT_THAT(*ReadFile(options_.work + "/report.svg"), HasSubstr(row->name));
  }
  EXPECT_LT(fp8.shift->mean_kl, int4.shift->mean_kl);
  const auto bytes_of = [&](const char* name) {
    const Json made = *ParseJson(*ReadFile(Concat(options_.work, "/models/", name, ".quantize.json")));
    return made["output"]["weight_bytes"].get<uint64_t>();
  };
  EXPECT_LE(bytes_of("mixed"), bytes_of("int4-rtn")) << "what is compared has one size";

  options_.mixed_bytes = bytes_of("int4-rtn") + 1;
  TestContext test;
  EXPECT_THAT(Message(RunReport(options_, test.context)), HasSubstr("name another --work"));
}

TEST_F(ReportCommand, WhatCannotBeMadeOfTheModelIsToldBeforeAnythingIsMeasured) {
  ModelToSynthesize request;
  request.path = testing::TempDir() + "report_rows_of_96";
  fs::remove_all(request.path);
  request.format = ModelFormat::kSafetensors;
  request.config =
      ChangeShape(FindModelShape("135m").value(),
                  {.layers = 1, .hidden = 96, .heads = 3, .kv_heads = 3, .ffn = 192, .vocab = 300})
          .value();
  request.text = ByteLevelText();
  const auto written = Synthesize(request);
  ASSERT_TRUE(written.ok()) << written.status();
  const auto least = QuantizedBytes(options_.evaluate.target.model, {"int4-g64", DType::kInt4G32, 64});
  ASSERT_TRUE(least.ok()) << least.status();
  const struct {
    std::string model;
    uint64_t mixed_bytes;
    const char* error;
  } cases[] = {{request.path, 0, "--techniques: mixed: --to int4-g64: model.layers.0."},
               {options_.evaluate.target.model, *least - 1, "--mixed-fit: "}};
  options_.techniques = {"int4-rtn", "kv-int8", "mixed"};
  options_.calibration = {.path = "models/eval/calibration.jsonl", .samples = 8};
  for (const auto& each : cases) {
    options_.evaluate.target.model = each.model;
    options_.mixed_bytes = each.mixed_bytes;
    TestContext test;
    const Status status = RunReport(options_, test.context);
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << status;
    EXPECT_THAT(Message(status), HasSubstr(each.error));
    EXPECT_EQ(test.err.str(), "") << "nothing was measured before";
  }
}

TEST_F(ReportCommand, WhatPruneMakesIsAVariantLikeAnyOtherModel) {
  const std::string made = testing::TempDir() + "report_pruned";
  fs::remove_all(made);
  fs::create_directory(made);
  PruneRequest zeros;
  zeros.model = options_.evaluate.target.model;
  zeros.out = made + "/2of4";
  zeros.method = kPruneMethods[1];  // magnitude
  zeros.pattern = {.kept = 2, .of = 4};
  PruneRequest narrow;
  narrow.model = zeros.model;
  narrow.out = made + "/narrow";
  narrow.cut.ffn_share = 0.25;
  narrow.calibration = {.path = "models/eval/calibration.jsonl", .samples = 8};
  for (const PruneRequest* request : {&zeros, &narrow}) {
    const Status pruned = Prune(*request).status();
    ASSERT_TRUE(pruned.ok()) << pruned;
  }
  options_.variants = {{.name = "2of4", .model = zeros.out}, {.name = "narrow", .model = narrow.out}};
  options_.cascades = {{.tiers = {"2of4", "baseline"}, .thresholds = {-0.1}}};
  const TechniqueReport report = Run();
  ASSERT_EQ(report.rows.size(), 4u);
  for (const size_t row : {1, 2}) {
    EXPECT_LT(report.rows[row].weight_bytes, report.rows[0].weight_bytes) << report.rows[row].name;
    EXPECT_NE(report.rows[row].model_digest, report.rows[0].model_digest);
    ASSERT_TRUE(report.rows[row].shift.has_value());
    EXPECT_GT(report.rows[row].shift->mean_kl, 0);
  }
  EXPECT_EQ(report.rows[3].name, "2of4+baseline@-0.1");
}

TEST_F(ReportCommand, GoesOnWhereItWasEnded) {
  options_.techniques = {"q8_0"};
  {
    TestContext test;  // blocks the signal: it waits until the command looks
    ASSERT_EQ(::raise(SIGINT), 0);
    EXPECT_EQ(RunReport(options_, test.context).code(), StatusCode::kCancelled);
  }
  const Json whole = RowToJson(Run().rows[0]);
  // Half of the answers and all measurements are lost.
  fs::remove_all(options_.work + "/rows");
  for (const auto& file : fs::directory_iterator(options_.work + "/answers")) {
    std::string text = *ReadFile(file.path().string());
    std::ofstream(file.path(), std::ios::binary | std::ios::trunc) << text.substr(0, text.size() / 2);
  }
  const Json again = RowToJson(Run().rows[0]);
  EXPECT_THAT(told_, Not(HasSubstr("kept")));
  for (const char* member : {"tasks", "prompt_tokens", "completion_tokens"})
    EXPECT_EQ(again[member], whole[member]) << member;
}

// Each would have the other's work in its times.
TEST_F(ReportCommand, NoTwoMeasureInOneFolder) {
  constexpr const char* kFolders[] = {"rows"};
  const auto other = OpenWorkFolder(options_.work, kFolders);
  ASSERT_TRUE(other.ok()) << other.status();
  TestContext test;
  const Status status = RunReport(options_, test.context);
  EXPECT_EQ(ExitCodeFor(status), kExitUnavailable) << status;
  EXPECT_THAT(Message(status), HasSubstr("another process is at work there"));
}

TEST_F(ReportCommand, SpeedsAreMediansOfPassesWhichAreKept) {
  options_.speed_passes = 3;
  options_.techniques = {"kv-int8"};
  const TechniqueReport report = Run();
  EXPECT_THAT(told_, HasSubstr("speeds, pass 3 of 3: "));
  std::map<std::string, std::vector<std::vector<BatchSpeed>>> kept;  // by the file of the first pass
  for (const auto& file : fs::directory_iterator(options_.work + "/rows")) {
    const std::string path = file.path().string();
    const TechniqueRow row = *RowFromJson(*ParseJson(*ReadFile(path)), "row");
    kept[path.substr(0, path.find(".pass-"))].push_back(row.speeds);
  }
  ASSERT_EQ(kept.size(), report.rows.size());
  for (const TechniqueRow& row : report.rows) {
    const bool is_a_median = std::ranges::any_of(kept, [&](const auto& each) {
      return each.second.size() == 3 &&
             MedianSpeeds(each.second)[0].decode_tokens_per_second == row.speeds[0].decode_tokens_per_second;
    });
    EXPECT_TRUE(is_a_median) << row.name;
  }
  EXPECT_EQ(RowToJson(Run().rows[1]), RowToJson(report.rows[1])) << "nothing is measured again";
}

TEST_F(ReportCommand, OtherSettingsAreMeasuredAgain) {
  Run();
  options_.evaluate.max_tokens = 16;
  Run();
  EXPECT_THAT(told_, Not(HasSubstr("kept")));
  options_.batches = {2};
  EXPECT_EQ(Run().rows[0].speeds.size(), 1u);
  EXPECT_THAT(told_, Not(HasSubstr("kept")));
}

TEST_F(ReportCommand, AModelThatWasMadeOfAnotherIsNotTaken) {
  options_.techniques = {"q4_0"};
  Run();
  options_.evaluate.target.model = "models/terrace-demo-small";
  TestContext test;
  const Status status = RunReport(options_, test.context);
  EXPECT_EQ(ExitCodeFor(status), kExitConfig) << status;
  EXPECT_THAT(Message(status), HasSubstr("name another --work"));
}

TEST_F(ReportCommand, WhatMakesNoSenseIsAnErrorThatNamesIt) {
  const struct {
    std::function<void(ReportOptions&)> change;
    const char* error;
    int exit_code;
  } cases[] = {
      {[](ReportOptions& o) {
         o.techniques = {"q8_0", "q8_0"};
       },
       "two rows are named q8_0", kExitUsage},
      {[](ReportOptions& o) { o.variants = {{.name = "baseline", .model = "m"}}; }, "baseline", kExitUsage},
      {[](ReportOptions& o) { o.techniques = {"magic"}; }, "magic", kExitUsage},
      {[](ReportOptions& o) {
         o.cascades = {{.tiers = {"nano", "baseline"}, .thresholds = {-1}}};
       },
       "no row is named nano", kExitUsage},
      {[](ReportOptions& o) { o.variants = {{.name = "a", .model = "/absent"}}; }, "a: ", kExitNoInput},
      {[](ReportOptions& o) {
         o.variants = {{.name = "a", .model = "models", .drafter = "model", .draft_model = "/none"}};
       },
       "a: /none", kExitNoInput},
      {[](ReportOptions& o) { o.variants = {{.name = "a", .model = "models", .kv_dtype = "int4"}}; },
       "a: kv \"int4\"", kExitUsage},
      {[](ReportOptions& o) { o.evaluate.tasks = {"/absent.jsonl"}; }, "/absent.jsonl", kExitNoInput},
      {[](ReportOptions& o) { o.techniques = {"int4-gptq"}; }, "int4-gptq: ", kExitUsage},
      {[](ReportOptions& o) { o.speed_tokens = 600; }, "--speed-tokens 600", kExitUsage},
      {[](ReportOptions& o) { o.work = "/proc/nowhere"; }, "--work", kExitUnavailable},
      {[](ReportOptions& o) { o.history = {"/absent.json"}; }, "/absent.json", kExitNoInput},
      {[](ReportOptions& o) { o.history = {"models/eval/classify.jsonl"}; }, "classify.jsonl", kExitData},
  };
  for (const auto& each : cases) {
    ReportOptions options = options_;
    options.evaluate.limit = 1;
    each.change(options);
    TestContext test;
    const Status status = RunReport(options, test.context);
    EXPECT_EQ(ExitCodeFor(status), each.exit_code) << status;
    EXPECT_THAT(Message(status), HasSubstr(each.error));
    EXPECT_THAT(test.err.str(), Not(HasSubstr("baseline: "))) << "nothing was measured before";
  }
}

}  // namespace
}  // namespace terrace
