// Whatever is shared with other files is included above the pragma: an inline function compiled below it
// could be the copy that the linker keeps for all.
#include <immintrin.h>

#include "kernels/cpu_leaves.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"

#pragma GCC target("avx2,fma,f16c")

#include "kernels/simd/vec16_avx2.h"

#include "kernels/activation/silu_mul_cpu.h"
#include "kernels/attention/paged_attention_cpu.h"
#include "kernels/embed/embed_cpu.h"
#include "kernels/gemm/encode_activations_cpu.h"
#include "kernels/gemm/gemm_cpu.h"
#include "kernels/norm/rms_norm_cpu.h"
#include "kernels/sample/softmax_weights_cpu.h"

namespace terrace {

const CpuLeaves kAvx2Leaves = {
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
