#include "tools/cli/new_file.h"

#include <filesystem>

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
