// From f32 to what weight files hold. Pure; the same bits on every machine.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/dtype.h"

namespace terrace {

// `values` are whole blocks of `dtype`, not kInt8, and `out` as many bytes as they take. F16 and BF16 round
// to nearest, ties to even. Quantized formats round each value to the nearest level of its block, halves away
// from zero, and choose levels plainly:
//   Q8_0              the scale is the largest magnitude over 127, as in ggml's quantize_row_q8_0_ref
//   Q4_0, Q5_0, Q6_K  the element of the largest magnitude becomes the lowest code exactly
//   Q4_K, INT4        the codes span the least and the largest value, and 0
void EncodeWeights(DType dtype, std::span<const float> values, std::span<std::byte> out);

}  // namespace terrace
