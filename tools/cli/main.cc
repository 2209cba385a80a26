// terrace: the command-line tool. Every command is a function of its Options struct; this file only
// dispatches.
#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "base/exit_code.h"
#include "tools/cli/command_context.h"
#include "tools/cli/command_line.h"
#include "tools/cli/verdict.h"

namespace terrace {
namespace {

constexpr int kExitInterrupted = 130;  // as shells say it: 128 + SIGINT

struct Dispatch {
  const CommandContext& context;

  Status operator()(const ShowText& options) const {
    context.out << options.text;
    return Status();
  }
  Status operator()(const UpOptions& options) const { return RunUp(options, context); }
  Status operator()(const DemoOptions& options) const { return RunDemo(options, context); }
  Status operator()(const ChatOptions& options) const { return RunChat(options, context); }
  Status operator()(const GenerateOptions& options) const { return RunGenerate(options, context); }
  Status operator()(const StatusOptions& options) const { return RunStatus(options, context); }
  Status operator()(const InspectOptions& options) const { return RunInspect(options, context); }
  Status operator()(const EvaluateOptions& options) const { return RunEvaluate(options, context); }
  Status operator()(const CalibrateOptions& options) const { return RunCalibrate(options, context); }
  Status operator()(const TrainRouterOptions& options) const { return RunTrainRouter(options, context); }
  Status operator()(const QuantizeOptions& options) const { return RunQuantize(options, context); }
  Status operator()(const PruneOptions& options) const { return RunPrune(options, context); }
  Status operator()(const SynthesizeOptions& options) const { return RunSynthesize(options, context); }
  Status operator()(const KeyOptions& options) const { return RunKey(options, context); }
  Status operator()(const ValidateOptions& options) const { return RunValidate(options, context); }
  Status operator()(const BenchOptions& options) const { return RunBench(options, context); }
  Status operator()(const CertifyOptions& options) const { return RunCertify(options, context); }
  Status operator()(const VerifyManifestOptions& options) const {
    return RunVerifyManifest(options, context);
  }
  Status operator()(const ReportOptions& options) const { return RunReport(options, context); }
  Status operator()(const PlanOptions& options) const { return RunPlan(options, context); }
};

int Main(int argc, char** argv) {
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
  Status status = line.options.ok() ? std::visit(Dispatch{context}, *line.options) : line.options.status();
  context.out << std::flush;
  if (status.ok() && !context.out) status = Unavailable("stdout: the output could not be written");
  if (status.ok()) return kExitOk;
  context.err << "terrace" << (line.command.empty() ? "" : " ") << line.command << ": " << Message(status)
              << "\n";
  if (Reason(status) == kAnswerIsNoReason) return kExitFailure;
  return status.code() == StatusCode::kCancelled ? kExitInterrupted : ExitCodeFor(status);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
