#include "kernels/op_table.h"

namespace terrace {
namespace {

// The reference reads rows where they lie.
GemmWeights AsItLies(const WeightMatrix& matrix, ComputeType, ThreadPool&) {
  return {.dtype = matrix.dtype,
          .packed = false,
          .data = matrix.data,
          .rows = matrix.rows,
          .columns = matrix.columns,
          .row_scales = matrix.row_scales,
          .row_pitch = matrix.row_pitch};
}
GemmWeights Unchanged(const WeightMatrix&, const GemmWeights& layout, std::byte*, ThreadPool&) {
  return layout;
}

void GemmEachRef(std::span<const GemmArgs> products, ThreadPool& pool) {
  for (const GemmArgs& product : products) GemmRef(product, pool);
}

}  // namespace

const OpTable& ReferenceOps() {
  static constexpr OpTable kTable = {.name = "reference",
                                     .embed = EmbedRef,
                                     .layout = AsItLies,
                                     .pack = Unchanged,
                                     .gemm = GemmRef,
                                     .gemm_each = GemmEachRef,
                                     .rope_kv = RopeKvRef,
                                     .paged_attention = PagedAttentionRef,
                                     .add_norm = AddNormRef,
                                     .cap_logits = CapLogitsRef,
                                     .softmax_weights = SoftmaxWeightsRef,
                                     .route_experts = RouteExpertsRef};
  return kTable;
}

StatusOr<ComputeType> ParseComputeType(std::string_view name) {
  if (name == "auto") return ComputeType::kAuto;
  if (name == "f32") return ComputeType::kF32;
  return WithReason(InvalidArgument("compute: \"", name, "\", not one of auto, f32"), "invalid_value");
}

StatusOr<const OpTable*> FindOps(std::string_view name) {
  if (name == "auto" || name == "cpu") return &CpuOps();
  if (name == "reference") return &ReferenceOps();
  return WithReason(InvalidArgument("kernels: \"", name, "\", not one of auto, cpu, reference"),
                    "invalid_value");
}

}  // namespace terrace
