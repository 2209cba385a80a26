#include "tools/cli/new_file.h"

#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <iterator>

#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::EndsWith;
using testing::StartsWith;

class NewFileTest : public testing::Test {
 protected:
  NewFileTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "new_file";
};

TEST_F(NewFileTest, IsWrittenOnceOrReplaced) {
  const std::string path = folder_ / "file";
  EXPECT_EQ(WriteNewFile(path, "one", /*is_secret=*/false), Status());
  EXPECT_EQ(WriteNewFile(path, "two", /*is_secret=*/false).code(), StatusCode::kUnavailable);
  EXPECT_EQ(*ReadFile(path), "one");
  EXPECT_EQ(CheckCanReplace(path), Status());
  EXPECT_EQ(ReplaceFile(path, "three"), Status());
  EXPECT_EQ(*ReadFile(path), "three");
  EXPECT_EQ(CheckCanReplace(folder_).code(), StatusCode::kUnavailable);
}

TEST_F(NewFileTest, NothingElseIsTouched) {
  const std::string path = folder_ / "file", other = path + ".new";
  EXPECT_EQ(WriteNewFile(other, "of the user", /*is_secret=*/false), Status());
  EXPECT_EQ(CheckCanReplace(path), Status());
  EXPECT_EQ(ReplaceFile(path, "text"), Status());
  EXPECT_EQ(*ReadFile(other), "of the user");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 2);
  EXPECT_EQ(fs::status(path).permissions(), fs::status(other).permissions());
}

TEST_F(NewFileTest, AFileThatIsNotWholeIsNotLeft) {
  const std::string path = folder_ / "file";
  rlimit usual = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &usual), 0);
  const rlimit small = {.rlim_cur = 6, .rlim_max = usual.rlim_max};
  signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = WriteNewFile(path, "more than that", /*is_secret=*/true);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &usual), 0);
  EXPECT_EQ(Message(status), path + ": cannot be written: File too large");
  EXPECT_FALSE(fs::exists(path));
  EXPECT_EQ(WriteNewFile(path, "again", /*is_secret=*/true), Status());
}

TEST_F(NewFileTest, WhatIsReadIsNotOverwritten) {
  const std::string path = folder_ / "file", link = folder_ / "link", other = folder_ / "other";
  EXPECT_EQ(WriteNewFile(path, "key", /*is_secret=*/true), Status());
  fs::create_symlink("file", link);
  for (const std::string& out : {path, link, (folder_ / "." / "file").string()}) {
    const Status status = CheckIsNoInput("--out", out, {{"--tasks", other}, {"--key", path}});
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Message(status), "--out " + out + ": is the file of --key, which would be overwritten");
  }
  EXPECT_EQ(CheckIsNoInput("--out", other, {{"--key", path}, {"--save-records", ""}}), Status());
  EXPECT_FALSE(CheckIsNoInput("--out", other, {{"--save-records", other}}).ok()) << "it will be there";
}

TEST_F(NewFileTest, WhatCannotBeWrittenIsToldWithThePathAndTheCause) {
  const std::string nowhere = folder_ / "absent" / "file";
  for (const Status& status : {WriteNewFile(nowhere, "text", /*is_secret=*/true), CheckCanReplace(nowhere),
                               ReplaceFile(nowhere, "text")}) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
    EXPECT_THAT(Message(status), StartsWith(nowhere + ": "));
    EXPECT_THAT(Message(status), EndsWith(": No such file or directory"));
  }
}

}  // namespace
}  // namespace terrace
