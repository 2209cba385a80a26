#include "tools/cli/line_appender.h"

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

class LineAppenderTest : public testing::Test {
 protected:
  LineAppenderTest() { std::filesystem::remove(path_); }
  void Write(const std::string& text) { std::ofstream(path_, std::ios::binary | std::ios::trunc) << text; }
  const std::string path_ = std::filesystem::path(testing::TempDir()) / "lines";
};

TEST_F(LineAppenderTest, GoesOnBehindWhatIsKept) {
  Write("one\ntw");
  auto lines = LineAppender::Open(path_);
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_EQ(lines->text(), "one\ntw");
  EXPECT_EQ(lines->Keep(4), Status());
  EXPECT_EQ(lines->Append("2"), Status());
  EXPECT_EQ(*ReadFile(path_), "one\n2\n");
}

TEST_F(LineAppenderTest, NothingThatIsThereIsCutOffWhole) {
  Write("one\n");
  auto lines = LineAppender::Open(path_);
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_DEATH(lines->Keep(0).IgnoreError(), "0 of 4");
}

// With one descriptor left the file can be opened, and not once more.
TEST_F(LineAppenderTest, AFileThatCannotBeReadStaysAsItIs) {
  Write("one\n");
  const int next = dup(STDERR_FILENO);
  ASSERT_GE(next, 0);
  close(next);
  rlimit usual = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &usual), 0);
  for (const int left : {0, 1}) {
    const rlimit few = {.rlim_cur = static_cast<rlim_t>(next + left), .rlim_max = usual.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    const Status status = LineAppender::Open(path_).status();
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &usual), 0);
    EXPECT_EQ(ExitCodeFor(status), kExitUnavailable) << status;
    EXPECT_THAT(Message(status), testing::EndsWith(": Too many open files"));
    EXPECT_EQ(*ReadFile(path_), "one\n");
  }
}

TEST_F(LineAppenderTest, AFullDiskIsToldOnceAndForAll) {
  auto lines = LineAppender::Open(path_);
  ASSERT_TRUE(lines.ok()) << lines.status();
  rlimit usual = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &usual), 0);
  const rlimit small = {.rlim_cur = 6, .rlim_max = usual.rlim_max};
  signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status first = lines->Append("one"), second = lines->Append("second");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &usual), 0);
  EXPECT_EQ(first, Status());
  EXPECT_EQ(Message(second), path_ + ": cannot be written: File too large");
  EXPECT_EQ(lines->Append("three"), second) << "it would go on in the middle of a line";
  EXPECT_EQ(*ReadFile(path_), "one\nse");
}

TEST_F(LineAppenderTest, WhatIsNoFileIsRefused) {
  EXPECT_EQ(ExitCodeFor(LineAppender::Open(testing::TempDir()).status()), kExitUnavailable);
  EXPECT_EQ(ExitCodeFor(LineAppender::Open("/dev/null").status()), kExitUnavailable);
}

}  // namespace
}  // namespace terrace
