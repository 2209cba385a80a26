// The values of weights, as files hold them. Slow and exact: F32 up to Q8_0 are f32 values, the others are
// what kernels/quant/weight_codes.h says.
#pragma once

#include "kernels/weight_matrix.h"

namespace terrace {

// Element [row, column].
float WeightAt(const WeightMatrix& matrix, size_t row, size_t column);

// All elements of a row into out, [columns].
void DecodeRow(const WeightMatrix& matrix, size_t row, float* out);

}  // namespace terrace
