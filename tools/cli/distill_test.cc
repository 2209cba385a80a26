#include "tools/cli/distill.h"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/command_line.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string EmptyFolder(const std::string& name) {
  const fs::path folder = fs::path(testing::TempDir()) / name;
  fs::remove_all(folder);
  fs::create_directory(folder);
  return folder;
}

TEST(DistillCommand, SaysHowItIsBuiltWhereItIsNot) {
  const Status status = BecomeDistiller({EmptyFolder("no_distiller")}, {"distill"});
  EXPECT_EQ(ExitCodeFor(status), kExitUnavailable) << status;
  EXPECT_THAT(Message(status), HasSubstr("./quickstart --with-distill"));
}

TEST(DistillCommand, BecomesTheProgramBesideItWithTheSameArguments) {
  const std::string folder = EmptyFolder("distiller");
  const std::string program = folder + "/terrace-distill";
  std::ofstream(program) << "#!/bin/sh\n[ \"$*\" = 'distill --out a b' ] && exit 7\nexit 8\n";
  ASSERT_EQ(::chmod(program.c_str(), 0755), 0);
  EXPECT_EXIT(static_cast<void>(BecomeDistiller({EmptyFolder("other"), folder}, {"distill", "--out", "a b"})),
              testing::ExitedWithCode(7), "");
  ASSERT_EQ(::chmod(program.c_str(), 0644), 0);
  const Status status = BecomeDistiller({folder}, {"distill"});
  EXPECT_THAT(Message(status), HasSubstr(program));
}

TEST(DistillCommand, FlagsBecomeARequest) {
  const std::vector<std::string> arguments = {
      "distill", "--teacher", "t", "--as",     "draft",   "--data",  "a",    "--data",
      "b",       "--out",     "o", "--kl",     "reverse", "--dtype", "bf16", "--temperature",
      "2",       "--threads", "3", "--tokens", "1000"};
  const CommandLine line = ParseCommandLine(arguments);
  ASSERT_TRUE(line.options.ok()) << line.options.status();
  const auto& options = std::get<DistillOptions>(*line.options);
  EXPECT_EQ(options.arguments, arguments);
  const DistillRequest& request = options.request;
  EXPECT_EQ(request.teacher, "t");
  EXPECT_EQ(request.data, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(request.out, "o");
  EXPECT_TRUE(request.is_draft);
  EXPECT_TRUE(request.trainer.loss.is_reverse);
  EXPECT_EQ(request.trainer.loss.temperature, 2);
  EXPECT_EQ(request.dtype, DType::kBF16);
  EXPECT_EQ(request.tokens, 1000u);
  EXPECT_EQ(options.threads, 3u);
}

TEST(DistillCommand, FlagsThatMakeNoSenseAreRefused) {
  const std::vector<std::string> right = {"distill", "--teacher", "t", "--data", "a", "--out", "o"};
  const std::vector<std::vector<std::string>> wrong = {{"--student", "s", "--layers", "2"},
                                                       {"--student", "s", "--config", "c"},
                                                       {"--layers", "0"},
                                                       {"--as", "teacher"},
                                                       {"--dtype", "q8_0"},
                                                       {"--kl", "sideways"},
                                                       {"--tokens", "-1"},
                                                       {"--temperature", "warm"}};
  for (const auto& more : wrong) {
    std::vector<std::string> arguments = right;
    arguments.insert(arguments.end(), more.begin(), more.end());
    EXPECT_EQ(ExitCodeFor(ParseCommandLine(arguments).options.status()), kExitUsage) << more[0];
  }
  EXPECT_EQ(ExitCodeFor(ParseCommandLine({"distill", "--out", "o"}).options.status()), kExitUsage);
}

}  // namespace
}  // namespace terrace
