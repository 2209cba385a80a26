// Scales of the inputs of linears: the columns of the linears' weights are multiplied by them, and what comes
// before divides by them (a norm's weights, or the rows of the linear that makes the input), so that the
// layer computes what it did, to rounding, while the columns that matter are rounded finer. Pure; the same
// bits for any number of threads, on one kind of processor.
//
// What divides: the norms for kAttention and kFfn, the rows of value for kAttentionOutput, those of up for
// kDown. Query heads that share a value head share its scales. With experts each has scales of its kDown, and
// kFfn has none: the router, which stays as it is, reads the same normalized stream.
#pragma once

#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/hessian.h"
#include "tools/optimize/quantized_matrix.h"
#include "worker/formats/model_config.h"

namespace terrace {

// AWQ (Lin et al., "AWQ: Activation-aware Weight Quantization", MLSys 2024): mean|x|^a, of the a from 0 to 1
// in twentieths with which nearest levels, weighed by the activations, lose least of the linears' outputs: of
// 128 rows of each, as shares of their squares, so that queries and keys do not decide alone. One scale for
// each channel of what divides. `hessian` is of `input`.
std::vector<float> AwqScales(const ModelConfig& config, const FloatLayer& layer, LayerInput input,
                             const Hessian& hessian, const RowFormat& format, ThreadPool& pool);

// SmoothQuant (Xiao et al., ICML 2023): sqrt(max|x| / max|w|), which makes activations and weights equally
// hard to round.
std::vector<float> SmoothScales(const ModelConfig& config, const FloatLayer& layer, LayerInput input,
                                const Hessian& hessian);

// Multiplies and divides.
void FoldScales(const ModelConfig& config, LayerInput input, std::span<const float> scales,
                FloatLayer& layer);

}  // namespace terrace
