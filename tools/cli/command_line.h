// The command line of `terrace`: flags to one Options struct. Pure.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "base/status.h"
#include "tools/cli/bench.h"
#include "tools/cli/calibrate.h"
#include "tools/cli/certify.h"
#include "tools/cli/chat.h"
#include "tools/cli/demo.h"
#include "tools/cli/digest.h"
#include "tools/cli/distill.h"
#include "tools/cli/evaluate.h"
#include "tools/cli/generate.h"
#include "tools/cli/inspect.h"
#include "tools/cli/key.h"
#include "tools/cli/plan.h"
#include "tools/cli/prune.h"
#include "tools/cli/quantize.h"
#include "tools/cli/report.h"
#include "tools/cli/status.h"
#include "tools/cli/synthesize.h"
#include "tools/cli/train_router.h"
#include "tools/cli/up.h"
#include "tools/cli/validate.h"
#include "tools/cli/verify_manifest.h"

namespace terrace {

struct ShowText {  // --help, --version
  std::string text;
};

using CommandOptions =
    std::variant<ShowText, UpOptions, DemoOptions, ChatOptions, GenerateOptions, StatusOptions,
                 InspectOptions, EvaluateOptions, CalibrateOptions, TrainRouterOptions, SynthesizeOptions,
                 BenchOptions, KeyOptions, ValidateOptions, QuantizeOptions, PruneOptions, DistillOptions,
                 CertifyOptions, VerifyManifestOptions, ReportOptions, PlanOptions, DigestOptions>;

struct CommandLine {
  std::string command;               // "generate"; "" when the error came before it was known
  StatusOr<CommandOptions> options;  // INVALID_ARGUMENT (exit code 64) for flags that make no sense
};

// `arguments` without the program's name.
CommandLine ParseCommandLine(const std::vector<std::string>& arguments);

}  // namespace terrace
