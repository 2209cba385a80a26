// `terrace train-router`: scorers of prompts that choose one tier for each request.
#pragma once

#include <string>

#include "base/status.h"
#include "tools/cli/calibrate.h"
#include "tools/cli/command_context.h"

namespace terrace {

struct TrainRouterOptions {
  std::string records = {};  // a file of `terrace calibrate --save-records`
  CalibrationFlags calibration = {};
};

Status RunTrainRouter(const TrainRouterOptions& options, const CommandContext& context);

}  // namespace terrace
