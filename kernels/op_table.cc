#include "kernels/op_table.h"

namespace terrace {

const OpTable& ReferenceOps() {
  static constexpr OpTable kTable = {.name = "reference",
                                     .embed = EmbedRef,
                                     .rms_norm = RmsNormRef,
                                     .gemm = GemmRef,
                                     .rope = RopeRef,
                                     .write_kv = WriteKvRef,
                                     .paged_attention = PagedAttentionRef,
                                     .silu_mul = SiluMulRef,
                                     .softmax_weights = SoftmaxWeightsRef};
  return kTable;
}

StatusOr<const OpTable*> FindOps(std::string_view name) {
  if (name == "auto" || name == "cpu") return &CpuOps();
  if (name == "reference") return &ReferenceOps();
  return WithReason(InvalidArgument("kernels: \"", name, "\", not one of auto, cpu, reference"),
                    "invalid_value");
}

}  // namespace terrace
