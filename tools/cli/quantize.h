// `terrace quantize`: a smaller model of a model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/optimize/quantize.h"

namespace terrace {

struct QuantizeOptions {
  std::string model, out;
  std::string to;               // a name of kQuantizeTargets
  std::string method = "gptq";  // of kQuantizeMethods
  CalibrationOptions calibration;
  double damping = QuantizeRequest::kDefaultDamping;
  bool act_order = false;
  bool imatrix = false;  // levels are searched for by what goes into the linears
  uint32_t threads = 0;  // 0: all cores this process may use
};

// Tells each layer as it is done, and what came of all.
Status RunQuantize(const QuantizeOptions& options, const CommandContext& context);

}  // namespace terrace
