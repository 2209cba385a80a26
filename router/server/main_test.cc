// The binary itself: how it says that it cannot start.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Ended {
  int exit_code = -1;
  std::string output;  // stdout and stderr
};

Ended RunRouter(const std::string& flags) {
  Ended out;
  FILE* pipe = popen(("router/server/terrace-router " + flags + " 2>&1").c_str(), "r");
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) out.output.append(buffer, n);
  out.exit_code = WEXITSTATUS(pclose(pipe));
  return out;
}

void ExpectOneLine(const Ended& run) {
  EXPECT_EQ(std::count(run.output.begin(), run.output.end(), '\n'), 1) << run.output;
  EXPECT_THAT(run.output, StartsWith("terrace-router: "));
}

std::string ConfigFile() {
  const std::string path = ::testing::TempDir() + "/router.yaml";
  std::ofstream(path) << "listen: {http: \"\", ops: \"\"}\n"
                         "tiers: [{name: nano, workers: [\"127.0.0.1:1\"]}]\n";
  return path;
}

TEST(RouterMain, WrongFlagsAreOneLineAndExitUsage) {
  for (const char* flags : {"", "--config", "--nonsense", "--config a.yaml extra",
                            "--config a.yaml --set log.level=info b.yaml"}) {
    const Ended run = RunRouter(flags);
    EXPECT_EQ(run.exit_code, kExitUsage) << flags;
    ExpectOneLine(run);
    EXPECT_THAT(run.output, HasSubstr("(see terrace-router --help)\n"));
  }
}

TEST(RouterMain, HelpAndVersionAreNoErrors) {
  EXPECT_EQ(RunRouter("--help").exit_code, kExitOk);
  EXPECT_THAT(RunRouter("--version").output, StartsWith("terrace-router "));
}

TEST(RouterMain, ATakenGrpcPortIsOneLine) {
  const int taken = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(taken, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(taken, 1), 0);
  ASSERT_EQ(getsockname(taken, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const Ended run = RunRouter("--config " + ConfigFile() + " --set log.level=error --grpc 127.0.0.1:" +
                              std::to_string(ntohs(address.sin_port)));
  EXPECT_EQ(run.exit_code, kExitUnavailable);
  ExpectOneLine(run);
  EXPECT_THAT(run.output, HasSubstr("listen.grpc"));
  close(taken);
}

TEST(RouterMain, ValidateSaysWhatAStartWouldSay) {
  const std::string file = ConfigFile();
  Ended run = RunRouter("--validate --config " + file);
  EXPECT_EQ(run.exit_code, kExitOk);
  EXPECT_EQ(run.output, file + ": can be used\n");
  run = RunRouter("--validate --set tiers[0].workers=[] --config " + file);
  EXPECT_EQ(run.exit_code, kExitConfig);
  ExpectOneLine(run);
  EXPECT_THAT(run.output, HasSubstr("tiers[0].workers"));
  run = RunRouter("--validate --set auth.keys_file=/absent --set auth.cluster_secret_file=/absent --config " +
                  file);
  EXPECT_EQ(run.exit_code, kExitNoInput) << "as of a configuration that is not there";
  EXPECT_THAT(run.output, HasSubstr("/absent"));
}

TEST(RouterMain, ValidateSaysWhatAReloadWouldSay) {
  const std::string file = ConfigFile(), changed = ::testing::TempDir() + "/changed.yaml";
  const auto change = [&](const std::string& line) {
    std::ofstream(changed) << "listen: {http: \"\", ops: \"\"}\n"
                              "tiers: [{name: nano, workers: [\"127.0.0.1:1\"]}]\n" +
                                  line;
    return RunRouter("--validate --config " + changed + " --running " + file);
  };
  Ended run = change("cluster: {slow_start_seconds: 5}\n");
  EXPECT_EQ(run.exit_code, kExitOk) << run.output;
  EXPECT_EQ(run.output, changed + ": can be used\n");
  run = change("log: {level: debug}\n");
  EXPECT_EQ(run.exit_code, kExitConfig);
  ExpectOneLine(run);
  EXPECT_THAT(run.output, HasSubstr("log.level: cannot change while the router runs"));
  run = RunRouter("--validate --config " + file + " --running /absent.yaml");
  EXPECT_EQ(run.exit_code, kExitNoInput);
  ExpectOneLine(run);
  EXPECT_THAT(run.output, HasSubstr("--running: "));
  EXPECT_EQ(RunRouter("--config " + file + " --running " + file).exit_code, kExitUsage) << "of --validate";
}

}  // namespace
}  // namespace terrace
