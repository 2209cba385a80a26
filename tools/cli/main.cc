// terrace: the command-line tool. Every command is a function of its Options struct; this file only
// dispatches.
#include <variant>

#include "tools/cli/command_context.h"
#include "tools/cli/command_line.h"
#include "tools/cli/command_main.h"

namespace terrace {
namespace {

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
  Status operator()(const DistillOptions& options) const { return RunDistill(options, context); }
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
  Status operator()(const DigestOptions& options) const { return RunDigest(options, context); }
};

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  using namespace terrace;
  return CommandMain(argc, argv, [](const CommandOptions& options, const CommandContext& context) {
    return std::visit(Dispatch{context}, options);
  });
}
