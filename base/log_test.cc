#include "base/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/log_limit.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::MatchesRegex;

// While it lives, standard error is a pipe.
class CapturedStderr {
 public:
  CapturedStderr() : saved_(dup(STDERR_FILENO)) {
    CHECK(pipe(ends_) == 0);
    fcntl(ends_[0], F_SETFL, O_NONBLOCK);
    dup2(ends_[1], STDERR_FILENO);
    close(ends_[1]);
  }
  ~CapturedStderr() {
    dup2(saved_, STDERR_FILENO);
    close(saved_);
    CloseReader();
  }
  void CloseReader() {
    if (ends_[0] >= 0) close(ends_[0]);
    ends_[0] = -1;
  }
  void FillUp() {
    fcntl(STDERR_FILENO, F_SETFL, O_NONBLOCK);
    while (write(STDERR_FILENO, "x", 1) == 1) {
    }
    fcntl(STDERR_FILENO, F_SETFL, 0);
  }
  std::string Read() {
    std::string all;
    char buffer[4096];
    for (ssize_t n; (n = read(ends_[0], buffer, sizeof buffer)) > 0;)
      all.append(buffer, static_cast<size_t>(n));
    return all;
  }
  std::vector<std::string> Lines() {
    std::vector<std::string> lines;
    std::istringstream in(Read());
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }

 private:
  const int saved_;
  int ends_[2];
};

TEST(Log, PrintsOnlyWarningsAndErrorsBeforeItsSetUp) {
  CapturedStderr captured;
  Log(LogLevel::kInfo, "quiet");
  Log(LogLevel::kWarn, "loud");
  const auto lines = captured.Lines();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(Json::parse(lines[0])["event"], "loud");
}

TEST(Log, WritesOneJsonObjectALine) {
  InitLog({.component = "router", .level = LogLevel::kInfo});
  CapturedStderr captured;
  Log(LogLevel::kInfo, "model_loaded",
      {{"model", "two\nlines \"quoted\" \xff"},
       {"seconds", 1.5},
       {"tokens", 7},
       {"ok", true},
       {"none", nullptr}});
  Log(LogLevel::kDebug, "not_logged");
  const auto lines = captured.Lines();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(
      lines[0],
      MatchesRegex("\\{\"ts\":\"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\\.[0-9]{3}Z\",\"level\":\"info\","
                   "\"event\":\"model_loaded\",\"component\":\"router\",.*\\}"));
  const Json line = Json::parse(lines[0]);
  EXPECT_EQ(line["model"], "two\nlines \"quoted\" \ufffd");
  EXPECT_EQ(line["seconds"], 1.5);
  EXPECT_EQ(line["tokens"], 7);
  EXPECT_EQ(line["ok"], true);
  EXPECT_TRUE(line["none"].is_null());
}

TEST(Log, IsForPeopleInPlainFormat) {
  InitLog({.component = "worker", .level = LogLevel::kDebug, .as_json = false});
  CapturedStderr captured;
  Log(LogLevel::kDebug, "started", {{"model", "nano"}, {"said", "a b"}, {"empty", ""}, {"threads", 2}});
  EXPECT_THAT(captured.Read(),
              MatchesRegex("[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3} debug started model=nano said=\"a b\" "
                           "empty=\"\" threads=2\n"));
}

TEST(Log, LinesOfManyThreadsDoNotMix) {
  InitLog({.component = "router", .level = LogLevel::kInfo});
  CapturedStderr captured;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < 50; ++i) Log(LogLevel::kInfo, "line", {{"thread", t}, {"i", i}});
      });
    }
  }
  const auto lines = captured.Lines();
  EXPECT_EQ(lines.size(), 200u);
  for (const auto& line : lines) EXPECT_TRUE(Json::accept(line)) << line;
}

TEST(Log, AReaderThatDoesNotReadCostsLinesNotTheProcess) {
  InitLog({.component = "router", .level = LogLevel::kInfo});
  CapturedStderr captured;
  captured.FillUp();
  const uint64_t before = DroppedLogLines();
  for (int i = 0; i < 5; ++i) Log(LogLevel::kInfo, "lost");
  EXPECT_EQ(DroppedLogLines() - before, 5u);
  captured.Read();
  Log(LogLevel::kInfo, "kept");
  const auto lines = captured.Lines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0], "{\"event\":\"log_dropped\",\"lines\":5}");
  EXPECT_EQ(Json::parse(lines[1])["event"], "kept");
}

TEST(Log, AClosedStandardErrorIsNoError) {
  InitLog({.component = "router", .level = LogLevel::kInfo});
  std::signal(SIGPIPE, SIG_DFL);
  CapturedStderr captured;
  captured.CloseReader();
  Log(LogLevel::kError, "nobody_reads");
  close(STDERR_FILENO);
  Log(LogLevel::kError, "nowhere_to_write");
}

TEST(LogLimit, LeavesOutWhatIsTooManyInAPeriodAndTheNextLineSaysHowMany) {
  LogLimit limit(2, std::chrono::seconds(1));
  const MonoTime begin{};
  EXPECT_EQ(limit.Take(begin), 0u);
  EXPECT_EQ(limit.Take(begin + std::chrono::milliseconds(500)), 0u);
  EXPECT_FALSE(limit.Take(begin + std::chrono::milliseconds(999)).has_value());
  EXPECT_FALSE(limit.Take(begin + std::chrono::milliseconds(999)).has_value());
  EXPECT_EQ(limit.Take(begin + std::chrono::seconds(1)), 2u);
  EXPECT_EQ(limit.Take(begin + std::chrono::seconds(1)), 0u);
  EXPECT_FALSE(limit.Take(begin + std::chrono::seconds(1)).has_value());
}

TEST(ParseLogLevel, KnowsItsFourNames) {
  EXPECT_EQ(*ParseLogLevel("debug"), LogLevel::kDebug);
  EXPECT_EQ(*ParseLogLevel("error"), LogLevel::kError);
  EXPECT_EQ(Message(ParseLogLevel("WARN").status()),
            "log level \"WARN\" is none of debug, info, warn, error");
}

}  // namespace
}  // namespace terrace
