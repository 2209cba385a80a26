// From f32 to what weight files hold. Pure; the same bits on every machine.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/dtype.h"

namespace terrace {

// `values` are whole blocks of `dtype`, not kInt8, and `out` as many bytes as they take. F16 and BF16 round
// to nearest, ties to even. Quantized formats round each value to the nearest level of its block, halves away
// from zero, and choose levels plainly (PlainLevel of weight_levels.h).
void EncodeWeights(DType dtype, std::span<const float> values, std::span<std::byte> out);

// One row of kInt8, likewise: the codes, and the row's scale.
float EncodeInt8Row(std::span<const float> values, std::span<std::byte> codes);

}  // namespace terrace
