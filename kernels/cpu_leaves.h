// The inner loops of one instruction set. Each computes one share of independent outputs; the tables
// of cpu_ops.cc share them out to threads.
#pragma once

#include "kernels/activation/silu_mul.h"
#include "kernels/attention/attention_runs.h"
#include "kernels/embed/embed.h"
#include "kernels/gemm/gemm.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/sample/softmax_weights.h"

namespace terrace {

struct CpuLeaves {
  size_t gemm_row_block;  // rows of a gemm tile are a multiple of it
  void (*embed)(const EmbedArgs&);
  void (*rms_norm)(const RmsNormArgs&, size_t begin, size_t end);
  void (*gemm)(const GemmArgs&, size_t begin, size_t end, float* tile, size_t tile_rows, size_t stride);
  // `partials` as AttentionPartial says: the first writes those of one span, the second merges those of spans
  // [begin, end), after those before.
  void (*attend_span)(const PagedAttentionArgs&, const AttentionRun&, size_t span, float* partials);
  void (*merge_spans)(const PagedAttentionArgs&, const AttentionRun&, size_t begin, size_t end,
                      const float* partials, AttentionTotals&);
  void (*silu_mul)(const SiluMulArgs&, size_t begin, size_t end);
  SoftmaxSums (*softmax_weights)(const SoftmaxWeightsArgs&);
};

extern const CpuLeaves kAvx512Leaves;  // needs avx512f, avx512bw, avx512dq, avx512vl, fma, f16c
extern const CpuLeaves kAvx2Leaves;    // needs avx2, fma, f16c
extern const CpuLeaves kGenericLeaves;

}  // namespace terrace
