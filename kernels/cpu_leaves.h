// The inner loops of one instruction set. Each computes one share of independent outputs; the tables
// of cpu_table.h share them out to threads.
#pragma once

#include "kernels/attention/attention_runs.h"
#include "kernels/embed/embed.h"
#include "kernels/gemm/activation_groups.h"
#include "kernels/gemm/gemm.h"
#include "kernels/norm/add_norm.h"
#include "kernels/rope/rope_kv.h"
#include "kernels/sample/cap_logits.h"
#include "kernels/sample/softmax_weights.h"

namespace terrace {

struct CpuLeaves {
  size_t gemm_strips;  // that are multiplied together
  bool has_bf16_dots;  // see ActivationsOf
  void (*embed)(const EmbedArgs&, size_t begin, size_t end);
  void (*encode_activations)(const GemmArgs&, size_t begin, size_t end, const ActivationGroups&);
  void (*gemm)(const GemmArgs&, const ActivationGroups&, size_t begin, size_t end);
  void (*rope_kv)(const RopeKvArgs&, size_t begin, size_t end);
  // `partials` as AttentionPartial says: the first writes those of one span, the second merges those of spans
  // [begin, end), after those before.
  void (*attend_span)(const PagedAttentionArgs&, const AttentionRun&, size_t span, float* partials);
  void (*merge_spans)(const PagedAttentionArgs&, const AttentionRun&, size_t begin, size_t end,
                      const float* partials, AttentionTotals&);
  void (*add_norm)(const AddNormArgs&, size_t begin, size_t end);
  void (*cap_logits)(const CapLogitsArgs&, size_t begin, size_t end);
  SoftmaxSums (*softmax_weights)(const SoftmaxWeightsArgs&);
};

extern const CpuLeaves kAvx512DotLeaves;   // as kAvx512VnniLeaves, and avx512bf16
extern const CpuLeaves kAvx512VnniLeaves;  // as kAvx512Leaves, and avx512vnni
extern const CpuLeaves kAvx512Leaves;      // needs avx512f, avx512bw, avx512dq, avx512vl, fma, f16c
extern const CpuLeaves kAvx2Leaves;        // needs avx2, fma, f16c
extern const CpuLeaves kGenericLeaves;

}  // namespace terrace
