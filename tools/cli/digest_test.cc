#include "tools/cli/digest.h"

#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"
#include "tools/cli/verdict.h"
#include "worker/formats/digest_list.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// A copy of the demo's smallest model, in both formats.
class DigestTest : public testing::TestWithParam<const char*> {
 protected:
  DigestTest() : model_(Concat(testing::TempDir(), "/digest", GetParam())) {
    fs::remove_all(model_);
    fs::remove(DigestListPath(model_));
    fs::copy(Concat("models/terrace-demo-nano", GetParam()), model_, fs::copy_options::recursive);
    weights_ = fs::is_directory(model_) ? model_ + "/model.safetensors" : model_;
    fs::permissions(weights_, fs::perms::owner_write, fs::perm_options::add);
  }

  void FlipLastByte() {
    std::fstream file(weights_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-1, std::ios::end);
    const char last = static_cast<char>(file.peek() ^ 1);
    file.seekp(-1, std::ios::end);
    file.put(last);
    ASSERT_TRUE(file.good());
  }

  const std::string model_;
  std::string weights_;
};
INSTANTIATE_TEST_SUITE_P(Formats, DigestTest, testing::Values("", ".f16.gguf"));

TEST_P(DigestTest, WritesTheListThatRanksReadAndTellsTheDigest) {
  const ModelFiles opened = *OpenModel(model_);
  TestContext test;
  ASSERT_EQ(RunDigest({.model = model_}, test.context), Status());
  EXPECT_THAT(test.out.str(), HasSubstr(Concat("digest  ", opened.digest.Hex(), "\nfiles   1 of ")));
  EXPECT_THAT(test.out.str(), HasSubstr(Concat("(", opened.digest_list.bytes(), " bytes) in 1 piece\n")));
  EXPECT_THAT(test.out.str(), HasSubstr(Concat("list    ", DigestListPath(model_), ": written\n")));
  const auto list = ReadDigestList(DigestListPath(model_));
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(*list, opened.digest_list);
  TestContext check;
  EXPECT_EQ(RunDigest({.model = model_, .check = true}, check.context), Status());
  EXPECT_THAT(check.out.str(), HasSubstr(Concat("digest  ", opened.digest.Hex())));
  EXPECT_THAT(check.out.str(), HasSubstr(": the weights agree\n"));
  EXPECT_FALSE(fs::exists(DigestListPath(model_) + ".new"));
}

TEST_P(DigestTest, CheckSaysNoOfOtherBytesAndAnotherListMakesItRight) {
  TestContext test;
  ASSERT_EQ(RunDigest({.model = model_}, test.context), Status());
  FlipLastByte();
  TestContext check;
  const Status status = RunDigest({.model = model_, .check = true}, check.context);
  EXPECT_EQ(Reason(status), kAnswerIsNoReason);
  EXPECT_THAT(Message(status), HasSubstr(Concat(weights_, ": its bytes from 0 up to ")));
  EXPECT_EQ(check.out.str(), "");
  ASSERT_EQ(RunDigest({.model = model_}, test.context), Status()) << "over the one that was there";
  EXPECT_EQ(RunDigest({.model = model_, .check = true}, check.context), Status());
  std::ofstream(weights_, std::ios::app) << "more";
  EXPECT_FALSE(RunDigest({.model = model_, .check = true}, check.context).ok());
}

TEST_P(DigestTest, TellsWhatIsNotThereOrMalformed) {
  TestContext test;
  EXPECT_EQ(ExitCodeFor(RunDigest({.model = model_, .check = true}, test.context)), kExitNoInput)
      << "no list";
  std::ofstream(DigestListPath(model_)) << "{}";
  EXPECT_EQ(ExitCodeFor(RunDigest({.model = model_, .check = true}, test.context)), kExitData);
  EXPECT_EQ(RunDigest({.model = model_}, test.context), Status()) << "what was there is not read";
  for (const bool check : {false, true}) {
    EXPECT_EQ(ExitCodeFor(RunDigest({.model = "/absent/model.gguf", .check = check}, test.context)),
              kExitNoInput);
  }
}

}  // namespace
}  // namespace terrace
