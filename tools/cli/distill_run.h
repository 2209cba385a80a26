// What terrace-distill does of a `terrace distill`: trains, telling how far it is.
#pragma once

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/distill.h"

namespace terrace {

Status TrainStudent(const DistillOptions& options, const CommandContext& context);

}  // namespace terrace
