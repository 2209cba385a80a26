// Which weights of a matrix become zero, and what the others become. Pure; the same bits for any number of
// threads, on one kind of processor.
//
// Magnitude: the smallest. SparseGPT (Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be
// Accurately Pruned in One-Shot", ICML 2023): inputs are visited one after the other; a weight w whose
// removal costs least, w^2 / [H^-1], goes, and those that are left take over what it did to the outputs.
#pragma once

#include <cstdint>

#include "base/parallel_for.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/hessian.h"

namespace terrace {

// Either a share of all weights of a matrix, or all but `kept` of each `of` neighbours of a row.
struct SparsityPattern {
  double share = 0;           // of the weights that become zero; of patterns without groups
  uint32_t kept = 0, of = 0;  // of: 0, or a power of two up to 128 that divides the rows

  bool has_groups() const { return of > 0; }
};

// Whether a matrix has a pattern of groups: no group of a row has more than `kept` weights that are not zero.
// False for rows that are not whole groups.
bool HasPattern(const FloatMatrix& matrix, const SparsityPattern& pattern);

FloatMatrix PruneByMagnitude(const FloatMatrix& matrix, const SparsityPattern& pattern);

// `inverse` has the inputs in their own order. A share is that of each panel of 128 inputs, over all rows.
// Memory: 8 bytes a weight.
FloatMatrix SparseGpt(const FloatMatrix& matrix, const SparsityPattern& pattern,
                      const InverseHessian& inverse, ThreadPool& pool);

}  // namespace terrace
