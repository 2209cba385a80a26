#include "kernels/cpu_leaves.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"

#include "kernels/simd/vec16_generic.h"

#include "kernels/activation/silu_mul_cpu.h"
#include "kernels/attention/paged_attention_cpu.h"
#include "kernels/embed/embed_cpu.h"
#include "kernels/gemm/encode_activations_cpu.h"
#include "kernels/gemm/gemm_cpu.h"
#include "kernels/norm/rms_norm_cpu.h"
#include "kernels/sample/softmax_weights_cpu.h"

namespace terrace {

const CpuLeaves kGenericLeaves = {
    .gemm_strips = kGemmStrips,
    .has_dots = kHasDots,
    .embed = EmbedTokens,
    .rms_norm = RmsNormTokens,
    .encode_activations = EncodeTokens,
    .gemm = GemmStrips,
    .attend_span = AttendSpan,
    .merge_spans = MergeSpans,
    .silu_mul = SiluMulElements,
    .softmax_weights = SoftmaxWeightsRow,
};

}  // namespace terrace
