// GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
// ICLR 2023): inputs are rounded one after the other, and those that are left take over what the rounding
// did to the outputs. Pure; the same bits for any number of threads, on one kind of processor.
#pragma once

#include "base/parallel_for.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/hessian.h"
#include "tools/optimize/quantized_matrix.h"

namespace terrace {

struct GptqOptions {
  // Levels lose least by what an error of each input costs; else they are plain (min and max).
  bool searches_levels = true;
  bool keeps_zeros = false;  // weights that are 0 stay 0; of formats that have a level 0
};

// `matrix` in `format`. Where `inverse` has the inputs in their own order, the levels of a block are chosen
// when its first input is reached, from what the weights are by then; in another order all beforehand, from
// `matrix`, so that a block stays a run of columns ("static groups").
QuantizedMatrix Gptq(const FloatMatrix& matrix, const RowFormat& format, const InverseHessian& inverse,
                     const GptqOptions& options, ThreadPool& pool);

}  // namespace terrace
