// `terrace train-router`: scorers of prompts that choose one tier for each request.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/calibrate.h"
#include "tools/cli/command_context.h"

namespace terrace {

struct TrainRouterOptions {
  std::vector<std::string> records = {};  // files of `terrace calibrate --save-records`, or of a router
  CalibrationFlags calibration = {};
};

Status RunTrainRouter(const TrainRouterOptions& options, const CommandContext& context);

}  // namespace terrace
