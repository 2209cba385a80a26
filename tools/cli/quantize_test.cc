#include "tools/cli/quantize.h"

#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/rewrite_command.h"
#include "tools/cli/test_context.h"
#include "worker/engine/open_engine.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class QuantizeCommand : public testing::Test {
 protected:
  QuantizeCommand() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  QuantizeOptions Options() const {
    QuantizeOptions options;
    options.model = "models/terrace-demo-nano";
    options.out = folder_ / "out";
    options.to = "int4-g64";
    options.calibration = {.path = "models/eval/calibration.jsonl", .samples = 8};
    options.threads = 2;
    return options;
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "quantize_command";
};

TEST_F(QuantizeCommand, TellsEachLayerAndWhatCameOfAll) {
  TestContext test;
  ASSERT_EQ(RunQuantize(Options(), test.context), Status());
  const auto model = OpenModel(Options().out);
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string out = test.out.str();
  EXPECT_THAT(out, HasSubstr("layer 1/3  query 0."));
  EXPECT_THAT(out, HasSubstr("layer 3/3  query 0."));
  EXPECT_THAT(out, HasSubstr("largest errors"));
  EXPECT_THAT(out, HasSubstr("262,592 parameters, 512.9 KiB -> "));
  EXPECT_THAT(out, HasSubstr(" bits a weight, "));
  EXPECT_THAT(out, HasSubstr("digest " + model->digest.Hex()));
  EXPECT_THAT(out, HasSubstr("report: " + Options().out + ".quantize.json"));
}

TEST_F(QuantizeCommand, AnEngineTellsTheFormatOfTheLayersNotOfTheEmbedding) {
  TestContext test;
  ASSERT_EQ(RunQuantize(Options(), test.context), Status());
  const auto opened = OpenEngine({.model = Options().out, .threads = 1, .device = "cpu"});
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->weight_dtype, "INT4_G64");
}

TEST_F(QuantizeCommand, FewerTokensThanInputsAreWarnedOf) {
  QuantizeOptions options = Options();
  options.calibration.path = folder_ / "few.jsonl";
  std::string digits;  // a token has one to three of them: 80 to 240
  for (int i = 0; i < 24; ++i) digits += "0123456789";
  std::ofstream(options.calibration.path) << "{\"text\": \"" << digits << "\"}\n";
  TestContext test;
  ASSERT_EQ(RunQuantize(options, test.context), Status());
  EXPECT_THAT(test.out.str(), HasSubstr("fewer than the 256 inputs of the widest linear"));
}

TEST(CalibrationText, TellsOfExpertsThatFewTokensGoTo) {
  RewriteReport report;
  report.calibration_tokens = report.most_inputs = 1'000;
  report.experts = 384;
  EXPECT_EQ(CalibrationText(report), "");
  report.experts_with_few_tokens = 40;
  EXPECT_EQ(
      CalibrationText(report),
      "warning: to 40 of 384 experts of all layers fewer tokens go than they have inputs; a linear of theirs "
      "with fewer is rewritten by its weights alone: take more rows (--samples)\n");
  report.experts_without_tokens = 3;
  EXPECT_THAT(CalibrationText(report), HasSubstr("to 3 of them none; a linear"));
}

TEST_F(QuantizeCommand, RoundsWithoutCalibrationAndWithAnImportanceMatrixOnlyWithIt) {
  QuantizeOptions options = Options();
  options.method = "rtn";
  options.calibration = {};
  TestContext test;
  EXPECT_EQ(RunQuantize(options, test.context), Status());
  options.out += "-2";
  options.imatrix = true;
  const Status status = RunQuantize(options, test.context);
  EXPECT_EQ(ExitCodeFor(status), kExitUsage) << status;
  EXPECT_THAT(Message(status), HasSubstr("--calibration"));
}

TEST_F(QuantizeCommand, Fp8IsRoundedUnlessAMethodIsAskedFor) {
  QuantizeOptions options = Options();
  options.to = "fp8";
  options.calibration = {};
  TestContext test;
  ASSERT_EQ(RunQuantize(options, test.context), Status());
  EXPECT_THAT(test.out.str(), HasSubstr("on CPUs it takes about "));
  options.out += "-2";
  options.method = "gptq";
  EXPECT_THAT(Message(RunQuantize(options, test.context)), HasSubstr("--method rtn"));
}

TEST_F(QuantizeCommand, ABudgetTellsWhatItCameTo) {
  QuantizeOptions options = Options();
  options.budget = {.faster = 0.2, .tokens = 50};
  TestContext faster, roomy;
  ASSERT_EQ(RunQuantize(options, faster.context), Status());
  EXPECT_THAT(faster.out.str(), HasSubstr("% faster of 20.0% asked; predicted divergence 0."));
  EXPECT_THAT(faster.out.str(), HasSubstr("a step of decoding here"));
  EXPECT_THAT(faster.out.str(), HasSubstr("% faster, 20.0% asked"));
  options.out += "-2";
  options.budget = {.bytes = uint64_t{1} << 30, .tokens = 50};
  ASSERT_EQ(RunQuantize(options, roomy.context), Status());
  EXPECT_THAT(roomy.out.str(), HasSubstr(" of 1.0 GiB at most; predicted divergence 0.0000"));
  EXPECT_THAT(roomy.out.str(), HasSubstr("none was quantized"));
}

TEST_F(QuantizeCommand, CtrlCKeepsWhatIsFinishedAndTheSameCommandGoesOn) {
  {
    TestContext test;  // blocks the signal: it waits until the command looks
    ASSERT_EQ(::raise(SIGINT), 0);
    const Status status = RunQuantize(Options(), test.context);
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
    EXPECT_THAT(Message(status), HasSubstr("the same command goes on"));
  }
  EXPECT_FALSE(fs::exists(Options().out));
  TestContext test;
  EXPECT_EQ(RunQuantize(Options(), test.context), Status());
  EXPECT_TRUE(fs::exists(Options().out));
}

TEST(FasterText, ComparesWhatIsMeasuredWithWhatIsAsked) {
  const auto steps = [](double ratio) {
    return std::vector<ComparedSteps>{{.batch = 1, .ratio = ratio}, {.batch = 16, .ratio = 9}};
  };
  EXPECT_EQ(FasterText(0.25, steps(0.5)), "one answer is decoded 100.0% faster, 25.0% asked\n");
  EXPECT_THAT(FasterText(0.25, steps(0.9)), HasSubstr("11.1% faster, 25.0% asked: less than the bytes say"));
}

}  // namespace
}  // namespace terrace
