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

// One row of FP8 E4M3 with a scale, as the BF16 that it becomes when it is opened: each value is rounded to
// the nearest code times the scale, which is the largest magnitude over 448. `out` is two bytes a value. Of
// what this made QuantizeE4M3 (kernels/quant/e4m3_row.h) gives the same codes and scale back, but for values
// near the least that f32 can hold.
void RoundToFp8(std::span<const float> values, std::span<std::byte> out);

}  // namespace terrace
