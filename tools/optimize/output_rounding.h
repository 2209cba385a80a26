// Rounds a matrix to the nearest levels, of levels that are chosen together by what the rounding costs the
// outputs. AWQ (Lin et al., MLSys 2024) clips each group by the error of the group's own share of the
// outputs; here each choice knows the errors of all other groups of its row, so that they make up for each
// other. Pure; the same bits for any number of threads, on one kind of processor.
#pragma once

#include "base/parallel_for.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/hessian.h"
#include "tools/optimize/quantized_matrix.h"

namespace terrace {

// Begins with the levels of RowFormat::Choose, weighed by the Hessian's diagonal, and goes over the blocks of
// each row, a few times at most: ranges somewhat smaller and larger are tried for each block, and the one
// that leaves the least error of the row's outputs is kept. So the outputs never lose more than with
// RoundToNearest and that importance, on the text of the Hessian. INT8's rows stay as they begin.
// `hessian` is of the matrix's inputs.
QuantizedMatrix RoundForOutputs(const FloatMatrix& matrix, const RowFormat& format, const Hessian& hessian,
                                ThreadPool& pool);

}  // namespace terrace
