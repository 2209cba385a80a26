// `terrace inspect MODEL --fit DEVICES`: which ways to split a model over devices fit, and what they would
// do. Reads shapes and formats, no weights.
#pragma once

#include <string>

#include "base/json_fwd.h"
#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/plan/device_fit.h"

namespace terrace {

struct InspectFitOptions {
  std::string devices = {};  // as of ParseDevices
  std::string weights = {};  // of a model without: the format that matrices are to have; "": BF16
  FitOptions fit = {};
};

// A table, or JSON. AnswerIsNo where nothing fits. Errors of ParseDevices, ReadModelShape and FitSplits.
Status RunInspectFit(const std::string& model, const InspectFitOptions& options, bool as_json,
                     const CommandContext& context);

Json FitsToJson(const ModelShape& shape, const DeviceGroup& group, const SplitFits& fits);

}  // namespace terrace
