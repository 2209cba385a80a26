#include "tools/cli/train_router.h"

namespace terrace {

Status RunTrainRouter(const TrainRouterOptions& options, const CommandContext& context) {
  RETURN_IF_ERROR(CheckFlags(options.calibration, CalibrationKind::kClassifier, options.records));
  ASSIGN_OR_RETURN(const std::string text, ReadRecords(options.records));
  return RunCalibrator(text, CalibrationKind::kClassifier, options.calibration, context);
}

}  // namespace terrace
