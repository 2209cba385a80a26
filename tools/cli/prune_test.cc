#include "tools/cli/prune.h"

#include <csignal>
#include <filesystem>

#include "base/exit_code.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/quantize.h"
#include "tools/cli/test_context.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class PruneCommand : public testing::Test {
 protected:
  PruneCommand() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  PruneOptions Options() const {
    PruneOptions options;
    options.model = "models/terrace-demo-nano";
    options.out = folder_ / "out";
    options.calibration = {.path = "models/eval/calibration.jsonl", .samples = 8};
    options.threads = 2;
    return options;
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "prune_command";
};

TEST_F(PruneCommand, TellsEachLayerWhatCameOfAllAndWhetherItPays) {
  const struct {
    const char *sparsity, *pattern, *mention;
  } cases[] = {{"0.5", "", "zeros without a pattern never pay"},
               {"", "4:8", "only 2:4"},
               {"", "2:4", "zeros are not read, and put back to multiply"}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.mention);
    PruneOptions options = Options();
    options.out += std::to_string(&c - cases);
    options.sparsity = *c.sparsity != '\0' ? 0.5 : 0;
    options.pattern = c.pattern;
    TestContext test;
    ASSERT_EQ(RunPrune(options, test.context), Status());
    const auto model = OpenModel(options.out);
    ASSERT_TRUE(model.ok()) << model.status();
    const std::string out = test.out.str();
    EXPECT_THAT(out, HasSubstr("layer 1/3  query 0."));
    EXPECT_THAT(out, HasSubstr("largest errors"));
    EXPECT_THAT(out, HasSubstr("262,592 -> 262,592 parameters"));
    EXPECT_THAT(out, HasSubstr("digest " + model->digest.Hex()));
    EXPECT_THAT(out, HasSubstr("a step on a CPU reads "));
    EXPECT_THAT(out, HasSubstr(c.mention));
    EXPECT_THAT(out, HasSubstr("report: " + options.out + ".prune.json"));
    const bool reads_less = options.pattern == "2:4";
    EXPECT_EQ(out.find("a step of decoding here") != std::string::npos, reads_less);
    EXPECT_EQ(out.find("on these CPUs it ") != std::string::npos, reads_less);
  }
}

TEST_F(PruneCommand, TimesAreOfTheModelsAndNotInWhatIsWritten) {
  PruneOptions options = Options();
  options.pattern = "2:4";
  std::vector<std::string> reports, models;
  for (const bool is_timed : {true, false}) {
    options.no_step_times = !is_timed;
    TestContext test;
    ASSERT_EQ(RunPrune(options, test.context), Status());
    EXPECT_EQ(test.out.str().find("on these CPUs ") != std::string::npos, is_timed);
    reports.push_back(ReadFile(options.out + ".prune.json").value());
    models.push_back(OpenModel(options.out).value().digest.Hex());
    fs::remove_all(options.out);
    fs::remove(options.out + ".prune.json");
  }
  EXPECT_EQ(reports[0], reports[1]);
  EXPECT_EQ(models[0], models[1]);
}

TEST(StepTimesText, SaysWhereItPaysAndWhereItDoesNot) {
  const ComparedSteps less{.batch = 1, .before_seconds = 2e-3, .after_seconds = 1e-3, .ratio = 0.5},
      more{.batch = 16, .before_seconds = 2e-3, .after_seconds = 3e-3, .ratio = 1.5},
      same{.batch = 16, .before_seconds = 2e-3, .after_seconds = 2e-3, .ratio = 0.99};
  const struct {
    std::vector<ComparedSteps> steps;
    const char* verdict;
  } cases[] = {{{less}, "on these CPUs it pays: each step takes less\n"},
               {{more}, "on these CPUs it does not pay: no step takes less\n"},
               {{same}, "on these CPUs it does not pay: no step takes less\n"},
               {{less, more}, "it pays at batch 1, and does not at batch 16\n"}};
  for (const auto& each : cases) EXPECT_THAT(StepTimesText(each.steps), HasSubstr(each.verdict));
  EXPECT_THAT(StepTimesText(cases[3].steps), HasSubstr("2.0 ms"));
}

TEST_F(PruneCommand, OfAModelThatHadThePatternItSaysSo) {
  PruneOptions options = Options();
  options.pattern = "2:4";
  {
    TestContext test;
    ASSERT_EQ(RunPrune(options, test.context), Status());
  }
  options.model = options.out;
  options.out += "-again";
  TestContext test;
  ASSERT_EQ(RunPrune(options, test.context), Status());
  EXPECT_THAT(test.out.str(), HasSubstr("as before: the model was 2:4 already"));
  EXPECT_THAT(test.out.str(), testing::Not(HasSubstr("nothing is skipped")));
}

TEST_F(PruneCommand, MoreThanCanGoIsToldAsAskedAndRemoved) {
  PruneOptions options = Options();
  options.cut = {.ffn_share = 0.999};  // one block of 64 stays of each 256
  TestContext test;
  ASSERT_EQ(RunPrune(options, test.context), Status());
  EXPECT_THAT(test.out.str(), HasSubstr("99.9% asked, 75.0% removed, in blocks of 64"));
  const auto text = ReadFile(options.out + ".prune.json");
  ASSERT_TRUE(text.ok()) << text.status();
  const Json report = Json::parse(*text);
  EXPECT_EQ(report["feed_forward"]["asked"], 0.999);
  EXPECT_EQ(report["feed_forward"]["removed"], 0.75);
}

TEST_F(PruneCommand, TellsWhatIsLeftOfEachLayer) {
  PruneOptions options = Options();
  options.cut = {.kv_heads = 1, .layers = 1};
  TestContext test;
  ASSERT_EQ(RunPrune(options, test.context), Status());
  EXPECT_THAT(test.out.str(), HasSubstr("layer 2/2  KV width 32, 256 channels, output 0."));
}

TEST_F(PruneCommand, OfANarrowerStreamTellsItsWidthAndWhatEachLinearLost) {
  PruneOptions options = Options();
  options.cut = {.hidden = 32};
  TestContext test;
  ASSERT_EQ(RunPrune(options, test.context), Status());
  EXPECT_THAT(test.out.str(), HasSubstr("layer 3/3  stream width 32, KV width "));
  EXPECT_THAT(test.out.str(), HasSubstr("256 channels, query 0."));
  EXPECT_THAT(test.out.str(), HasSubstr("GPUs take widths that are multiples of 64"));
  EXPECT_THAT(test.out.str(), testing::Not(HasSubstr("does not pay")));
}

TEST_F(PruneCommand, SaysWhenACutDoesNotPay) {
  QuantizeOptions quantize;  // what is cut from it becomes F16
  quantize.model = "models/terrace-demo-nano";
  quantize.out = folder_ / "int4";
  quantize.to = "int4-g32";
  quantize.method = "rtn";
  PruneOptions options = Options();
  options.model = quantize.out;
  options.cut = {.kv_heads = 1};
  TestContext test;
  ASSERT_EQ(RunQuantize(quantize, test.context), Status());
  ASSERT_EQ(RunPrune(options, test.context), Status());
  EXPECT_THAT(test.out.str(), HasSubstr("it does not pay as it is"));
}

TEST_F(PruneCommand, OptionsThatDoNotGoTogetherAreUsageErrors) {
  PruneOptions options = Options();
  TestContext test;
  EXPECT_EQ(ExitCodeFor(RunPrune(options, test.context)), kExitUsage);  // nothing to remove
  options.cut.layers = 1;
  options.method = "magnitude";
  const Status status = RunPrune(options, test.context);
  EXPECT_EQ(ExitCodeFor(status), kExitUsage) << status;
  EXPECT_THAT(Message(status), HasSubstr("--method"));
}

TEST_F(PruneCommand, CtrlCKeepsWhatIsFinishedAndTheSameCommandGoesOn) {
  PruneOptions options = Options();
  options.cut.layers = 1;
  {
    TestContext test;  // blocks the signal: it waits until the command looks
    ASSERT_EQ(::raise(SIGINT), 0);
    const Status status = RunPrune(options, test.context);
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
    EXPECT_THAT(Message(status), HasSubstr("the same command goes on"));
  }
  EXPECT_FALSE(fs::exists(options.out));
  TestContext test;
  EXPECT_EQ(RunPrune(options, test.context), Status());
  EXPECT_TRUE(fs::exists(options.out));
}

}  // namespace
}  // namespace terrace
