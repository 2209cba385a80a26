#include "tools/cli/distill_run.h"

#include <csignal>
#include <filesystem>

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class DistillRun : public testing::Test {
 protected:
  DistillRun() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  DistillOptions Options() const {
    DistillOptions options;
    options.request.teacher = "models/terrace-demo-nano";
    options.request.layers = 1;
    options.request.out = folder_ / "out";
    options.request.data = {"models/eval/calibration.jsonl"};
    options.request.tokens = 4000;
    options.request.batch_tokens = 1000;
    options.request.memory_tokens = 1000;
    options.request.validation_rows = 8;
    options.request.is_draft = true;
    options.threads = 2;
    return options;
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "distill_run";
};

TEST_F(DistillRun, TellsHowFarItIsAndWhatCameOfIt) {
  TestContext test;
  ASSERT_EQ(TrainStudent(Options(), test.context), Status());
  const auto model = OpenModel(Options().request.out);
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string out = test.out.str();
  EXPECT_THAT(out, HasSubstr("loss "));
  EXPECT_THAT(out, HasSubstr(" tokens/s  done"));
  EXPECT_THAT(out, HasSubstr("agreement with the teacher"));
  EXPECT_THAT(out, HasSubstr("as a draft: 0."));
  EXPECT_THAT(out, HasSubstr("digest " + model->digest.Hex()));
  EXPECT_THAT(out, HasSubstr("report: " + Options().request.out + ".distill.json"));
}

TEST_F(DistillRun, CtrlCWhileTheTeacherIsAskedSaysThatItIsAskedAnew) {
  DistillOptions options = Options();
  options.request.teacher_cache = folder_ / "cache";
  TestContext test;
  ASSERT_EQ(::raise(SIGINT), 0);
  const Status status = TrainStudent(options, test.context);
  EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
  EXPECT_THAT(Message(status), HasSubstr("asks the teacher anew"));
  EXPECT_FALSE(fs::exists(options.request.teacher_cache));
}

TEST_F(DistillRun, CtrlCKeepsWhatIsDoneAndTheSameCommandGoesOn) {
  {
    TestContext test;  // blocks the signal: it waits until the command looks
    ASSERT_EQ(::raise(SIGINT), 0);
    const Status status = TrainStudent(Options(), test.context);
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
    EXPECT_THAT(Message(status), HasSubstr("the same command goes on"));
  }
  EXPECT_FALSE(fs::exists(Options().request.out));
  TestContext test;
  EXPECT_EQ(TrainStudent(Options(), test.context), Status());
  EXPECT_TRUE(fs::exists(Options().request.out));
}

}  // namespace
}  // namespace terrace
