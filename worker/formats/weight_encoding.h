// From f32 to what weight files hold. Pure; the same bits on every machine.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/dtype.h"

namespace terrace {

// `values` are whole blocks of `dtype`, and `out` as many bytes as they take. F16 and BF16 round to nearest,
// ties to even; Q8_0 as ggml's quantize_row_q8_0_ref: in each block of 32 the scale is the largest magnitude
// over 127, stored as F16, and values over the unrounded scale are rounded, halves away from zero.
void EncodeWeights(DType dtype, std::span<const float> values, std::span<std::byte> out);

}  // namespace terrace
