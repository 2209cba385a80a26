#include "tools/cli/command_main.h"

#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "base/exit_code.h"
#include "tools/cli/verdict.h"

namespace terrace {
namespace {
constexpr int kExitInterrupted = 130;  // as shells say it: 128 + SIGINT
}

int CommandMain(int argc, char** argv,
                const std::function<Status(const CommandOptions&, const CommandContext&)>& run) {
  ShutdownSignal shutdown;
  const bool is_out_terminal = isatty(STDOUT_FILENO) != 0;
  const char* const no_color = std::getenv("NO_COLOR");
  const CommandContext context = {.argv0 = argv[0],
                                  .out = std::cout,
                                  .err = std::cerr,
                                  .is_out_terminal = is_out_terminal,
                                  .is_err_terminal = isatty(STDERR_FILENO) != 0,
                                  .use_color = is_out_terminal && (no_color == nullptr || *no_color == '\0'),
                                  .shutdown = shutdown};
  const CommandLine line = ParseCommandLine({argv + 1, argv + argc});
  Status status = line.options.ok() ? run(*line.options, context) : line.options.status();
  context.out << std::flush;
  if (status.ok() && !context.out) status = Unavailable("stdout: the output could not be written");
  if (status.ok()) return kExitOk;
  context.err << "terrace" << (line.command.empty() ? "" : " ") << line.command << ": " << Message(status)
              << "\n";
  if (Reason(status) == kAnswerIsNoReason) return kExitFailure;
  return status.code() == StatusCode::kCancelled ? kExitInterrupted : ExitCodeFor(status);
}

}  // namespace terrace
