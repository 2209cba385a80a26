#include "tools/cli/launch/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "base/shutdown.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr double kPatience = 60;  // of one Poll: it returns earlier

ChildSpec Shell(const std::string& name, const std::string& script) {
  return {name, {"/bin/sh", "-c", script}};
}

bool NotUrgent() { return false; }

class ChildProcessesTest : public testing::Test {
 protected:
  // Polls until the child writes `line`.
  void AwaitLine(const std::string& line) {
    while (lines_.empty() || lines_.back() != line) ASSERT_TRUE(children_.Poll(kPatience).empty());
  }
  ChildExit AwaitExit() {
    while (true) {
      if (const auto exits = children_.Poll(kPatience); !exits.empty()) return exits.front();
    }
  }

  std::vector<std::string> lines_;
  ChildProcesses children_{
      [this](const std::string& name, const std::string& line) { lines_.push_back(name + "> " + line); }};
};

TEST_F(ChildProcessesTest, AChildThatEndsIsReportedWithItsCodeAndLastLines) {
  ASSERT_TRUE(
      children_.Start(Shell("a", "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; done; echo why >&2; exit 65"))
          .ok());
  const ChildExit exit = AwaitExit();
  EXPECT_EQ(exit.Describe(), "a ended with exit code 65");
  EXPECT_EQ(exit.last_lines.size(), ChildProcesses::kLastLines);
  EXPECT_EQ(exit.last_lines.back(), "why");
  EXPECT_EQ(lines_.size(), 10u);
  EXPECT_FALSE(children_.IsRunning("a"));
}

TEST_F(ChildProcessesTest, AKilledChildIsReportedWithItsSignal) {
  ASSERT_TRUE(children_.Start(Shell("a", "printf 'no line end'; kill -9 $$")).ok());
  const ChildExit exit = AwaitExit();
  EXPECT_EQ(exit.signal, SIGKILL);
  EXPECT_THAT(exit.Describe(), testing::HasSubstr("killed by signal 9"));
  EXPECT_THAT(exit.last_lines, testing::ElementsAre("no line end"));
}

TEST_F(ChildProcessesTest, ABinaryThatCannotStartIsAnError) {
  const Status status = children_.Start({"a", {"/nowhere/terrace-worker"}});
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(Message(status), testing::HasSubstr("/nowhere/terrace-worker"));
  EXPECT_THAT(children_.running(), testing::IsEmpty());
}

TEST_F(ChildProcessesTest, OneChildsEndLeavesTheOthersRunning) {
  ASSERT_TRUE(children_.Start(Shell("stays", "exec sleep 1000")).ok());
  ASSERT_TRUE(children_.Start(Shell("ends", "exit 3")).ok());
  EXPECT_EQ(AwaitExit().name, "ends");
  EXPECT_THAT(children_.running(), testing::ElementsAre("stays"));
}

TEST_F(ChildProcessesTest, StopIsPoliteFirst) {
  ASSERT_TRUE(
      children_.Start(Shell("a", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done"))
          .ok());
  AwaitLine("a> up");
  const auto exits = children_.Stop({"a"}, kPatience, NotUrgent);
  ASSERT_EQ(exits.size(), 1u);
  EXPECT_EQ(exits[0].Describe(), "a ended with exit code 0");
  EXPECT_EQ(lines_.back(), "a> bye");
}

TEST_F(ChildProcessesTest, StopKillsAfterTheGraceOrWhenUrgent) {
  const struct {
    const char* name;
    double grace_seconds;
    bool is_urgent;
  } cases[] = {{"out of time", 0, false}, {"second Ctrl-C", kPatience, true}};
  for (const auto& c : cases) {
    ASSERT_TRUE(children_.Start(Shell("a", "trap '' TERM INT; echo up; while :; do sleep 0.01; done")).ok());
    AwaitLine("a> up");
    const auto exits = children_.Stop({"a"}, c.grace_seconds, [&] { return c.is_urgent; });
    ASSERT_EQ(exits.size(), 1u) << c.name;
    EXPECT_EQ(exits[0].signal, SIGKILL) << c.name;
    lines_.clear();
  }
}

TEST_F(ChildProcessesTest, ChildrenHearSignalsThatTheParentBlocks) {
  const ShutdownSignal shutdown;  // as in main
  ASSERT_TRUE(children_.Start(Shell("a", "echo up; exec sleep 1000")).ok());
  AwaitLine("a> up");
  const auto exits = children_.Stop({"a"}, kPatience, NotUrgent);
  ASSERT_EQ(exits.size(), 1u);
  EXPECT_EQ(exits[0].signal, SIGTERM);
}

// A process that starts a child, tells its pid through `report`, and waits.
[[noreturn]] void BecomeParent(int report) {
  ChildProcesses children([report](const std::string&, const std::string& line) {
    [[maybe_unused]] const ssize_t written = write(report, line.data(), line.size());
    close(report);
  });
  const Status status = children.Start({"a", {"/bin/sh", "-c", "echo $$; exec sleep 1000"}});
  while (status.ok()) children.Poll(kPatience);
  _exit(1);
}

TEST(ChildProcesses, AreKilledWhenTheirParentIs) {
  ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);  // the orphan becomes ours to wait for
  int report[2];
  ASSERT_EQ(pipe2(report, O_CLOEXEC), 0);
  const pid_t parent = fork();
  if (parent == 0) BecomeParent(report[1]);
  close(report[1]);
  std::string pid;
  char c;
  while (read(report[0], &c, 1) == 1) pid += c;
  close(report[0]);
  ASSERT_FALSE(pid.empty());

  kill(parent, SIGKILL);
  ASSERT_EQ(waitpid(parent, nullptr, 0), parent);
  int wait_status = 0;
  ASSERT_EQ(waitpid(std::stoi(pid), &wait_status, 0), std::stoi(pid));
  EXPECT_TRUE(WIFSIGNALED(wait_status));
  EXPECT_EQ(WTERMSIG(wait_status), SIGKILL);
}

TEST(ChildProcesses, AreGoneWithTheirOwner) {
  ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  {
    ChildProcesses children([](const std::string&, const std::string&) {});
    // The shell and a process it leaves in the background.
    ASSERT_TRUE(children.Start(Shell("a", "trap '' TERM; sleep 1000 & sleep 1000")).ok());
  }
  while (waitpid(-1, nullptr, 0) > 0) {  // orphans end too; nothing else does
  }
  EXPECT_EQ(errno, ECHILD);
}

}  // namespace
}  // namespace terrace
