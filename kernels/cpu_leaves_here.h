// The leaves of the instruction set whose simd/vec16_*.h was included before.
#pragma once

#include "kernels/attention/paged_attention_cpu.h"
#include "kernels/cpu_leaves.h"
#include "kernels/embed/embed_cpu.h"
#include "kernels/gemm/encode_activations_cpu.h"
#include "kernels/gemm/gemm_cpu.h"
#include "kernels/norm/add_norm_cpu.h"
#include "kernels/rope/rope_kv_cpu.h"
#include "kernels/sample/cap_logits_cpu.h"
#include "kernels/sample/softmax_weights_cpu.h"

namespace terrace {
namespace {

constexpr CpuLeaves kLeavesHere = {
    .gemm_strips = kGemmStrips,
    .has_bf16_dots = kHasBF16Dots,
    .embed = EmbedTokens,
    .encode_activations = EncodeTokens,
    .gemm = GemmStrips,
    .rope_kv = RopeKvTokens,
    .attend_span = AttendSpan,
    .merge_spans = MergeSpans,
    .add_norm = AddNormTokens,
    .cap_logits = CapLogitsRange,
    .softmax_weights = SoftmaxWeightsRow,
};

}  // namespace
}  // namespace terrace
