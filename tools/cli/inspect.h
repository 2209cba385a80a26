// `terrace inspect`: what a model on disk is, and the memory it needs.
#pragma once

#include <string>

#include "base/json_fwd.h"
#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/inspect_fit.h"
#include "worker/formats/model_files.h"

namespace terrace {

struct InspectOptions {
  std::string model;
  bool all_tensors = false;  // else layers are shown once
  bool json = false;
  InspectFitOptions fit = {};  // with devices: only whether the model fits them is told
};

// Errors of OpenModel; with devices those of RunInspectFit.
Status RunInspect(const InspectOptions& options, const CommandContext& context);

// All that is shown, as JSON: architecture, tensors, tokenizer, memory.
StatusOr<Json> InspectionToJson(const ModelFiles& files);

}  // namespace terrace
