// Inputs of a linear that go for good: what that costs, and what the inputs that are left take over. Pure;
// the same bits for any number of threads, on one kind of processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/parallel_for.h"
#include "base/status.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/hessian.h"

namespace terrace {

// Sum of squares, over the calibration tokens, of what inputs [first, first + count) add to the outputs of
// `matrix`: what is lost without them, if nothing takes over. For one input |input|^2 |column|^2.
double RemovalCost(const FloatMatrix& matrix, const Hessian& hessian, size_t first, size_t count);

// `matrix` with zeros in the columns that are not `kept` (rising, not empty). With `repair` the kept ones
// become what serves the outputs best, by least squares: W_k + W_r H_rk H_kk^-1, with `damping` times the
// mean of the diagonal added to that of H_kk. INVALID_ARGUMENT when H_kk is not positive definite for all its
// damping.
StatusOr<FloatMatrix> WithInputs(const FloatMatrix& matrix, const Hessian& hessian,
                                 std::span<const uint32_t> kept, bool repair, double damping,
                                 ThreadPool& pool);

// Rows or columns of a matrix, in the order given.
FloatMatrix RowsAt(const FloatMatrix& matrix, std::span<const uint32_t> rows);
FloatMatrix ColumnsAt(const FloatMatrix& matrix, std::span<const uint32_t> columns);

}  // namespace terrace
