// A backend: one table of functions, chosen at start. ReferenceOps is the definition of every op; CpuOps is
// tested against it. Functions are pure but for their outputs and may use the given ThreadPool; each output
// element is accumulated by one lane in an order that depends on the shapes of its own row only (the
// same-bits contract, docs/adr/0003-same-bits.md).
#pragma once

#include <span>
#include <string_view>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/embed/embed.h"
#include "kernels/gemm/gemm.h"
#include "kernels/moe/route_experts.h"
#include "kernels/norm/add_norm.h"
#include "kernels/rope/rope_kv.h"
#include "kernels/sample/cap_logits.h"
#include "kernels/sample/softmax_weights.h"

namespace terrace {

struct OpTable {
  std::string_view
      name;  // "reference", "cpu avx512-dot", "cpu avx512-vnni", "cpu avx512", "cpu avx2", "cpu generic"
  void (*embed)(const EmbedArgs&, ThreadPool&);
  // How gemm wants a matrix: layout() reads it and says so, without data; pack() makes that in `memory` of
  // layout.bytes, aligned to 64 bytes, which the result borrows. Where bytes are 0 it is taken as it lies.
  GemmWeights (*layout)(const WeightMatrix&, ComputeType, ThreadPool&);
  GemmWeights (*pack)(const WeightMatrix&, const GemmWeights& layout, std::byte* memory, ThreadPool&);
  void (*gemm)(const GemmArgs&, ThreadPool&);
  // Each of several products, with the bits of gemm, all shared out to the threads at once: many small ones
  // do not wait for each other. None reads what another writes.
  void (*gemm_each)(std::span<const GemmArgs>, ThreadPool&);
  void (*rope_kv)(const RopeKvArgs&, ThreadPool&);
  void (*paged_attention)(const PagedAttentionArgs&, ThreadPool&);
  void (*add_norm)(const AddNormArgs&, ThreadPool&);
  void (*cap_logits)(const CapLogitsArgs&, ThreadPool&);
  SoftmaxSums (*softmax_weights)(const SoftmaxWeightsArgs&);
  void (*route_experts)(const RouteExpertsArgs&, ThreadPool&);
};

const OpTable& ReferenceOps();
// The best this processor can run.
const OpTable& CpuOps();
// All CPU tables this processor can run, best first; the last is "cpu generic".
std::span<const OpTable> AllCpuOps();
// "auto", "cpu" or "reference"; INVALID_ARGUMENT otherwise.
StatusOr<const OpTable*> FindOps(std::string_view name);

}  // namespace terrace
