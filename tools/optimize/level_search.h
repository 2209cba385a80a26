// Levels that weigh the error of each weight by how much it matters, after llama.cpp's make_qx_quants and
// make_qkx3_quants (with an importance matrix) and AWQ's search for clipping. Pure.
#pragma once

#include <span>

#include "kernels/dtype.h"
#include "worker/formats/weight_levels.h"

namespace terrace {

// The level, of those tried, with the least sum of importance * (value - nearest level's value)^2 over values
// that share it; PlainLevel is among those tried. `importance` is as long as `values` and not negative. As of
// PlainLevel, what comes out is what HeadOf stores nearly (INT8: exactly).
WeightLevel SearchLevel(DType dtype, std::span<const float> values, std::span<const float> importance);

}  // namespace terrace
