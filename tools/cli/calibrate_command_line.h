// The flags of `terrace calibrate` and `terrace train-router`.
#pragma once

#include "CLI/CLI.hpp"
#include "tools/cli/calibrate.h"
#include "tools/cli/train_router.h"

namespace terrace {

void AddCalibrate(CLI::App& app, CalibrateOptions& options);
void AddTrainRouter(CLI::App& app, TrainRouterOptions& options);

}  // namespace terrace
