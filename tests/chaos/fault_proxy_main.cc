// fault-proxy: a FaultProxy as a program. Prints its address, then runs one command a line of standard input
// and answers each with one line: "ok", "ok" and JSON, or "error" and why. Ends with its input.
#include <cstdio>
#include <iostream>
#include <string>

#include "CLI/CLI.hpp"
#include "base/exit_code.h"
#include "tests/chaos/fault_commands.h"
#include "tests/chaos/fault_proxy.h"

namespace terrace {
namespace {

// For whoever waits for the line at the other end of a pipe.
void Print(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  CLI::App app("A TCP proxy that does harm on command. Commands are read from standard input, one a line.",
               "fault-proxy");
  FaultProxy::Options options;
  app.add_option("--upstream", options.upstream, "host:port that connections are passed on to")->required();
  app.add_option("--listen", options.listen, "host:port (default 127.0.0.1:0); port 0: any free one");
  app.add_option("--seed", options.seed, "of its draws (default 1)");
  app.footer(std::string(kFaultCommands));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  const auto proxy = FaultProxy::Start(options);
  if (!proxy.ok()) {
    std::fprintf(stderr, "fault-proxy: %s\n", Message(proxy.status()).c_str());
    return ExitCodeFor(proxy.status());
  }
  Print((*proxy)->address());
  for (std::string line; std::getline(std::cin, line);) {
    const auto told = RunFaultCommand(**proxy, line);
    if (!told.ok()) {
      Print("error " + Message(told.status()));
    } else {
      Print(told->empty() ? "ok" : "ok " + *told);
    }
  }
  return kExitOk;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
