#include "worker/model/found_tensors.h"

namespace terrace {
StatusOr<std::vector<FoundTensor>> FindTensors(const ModelConfig& config, const WeightSource& source) {
  std::vector<FoundTensor> found;
  for (const TensorRequirement& required : RequiredTensors(config)) {
    const StatusOr<TensorView> tensor = source.Find(required.name);
    if (!tensor.ok()) {
      return WithReason(DataLoss(source.path(), ": tensor \"", required.name, "\" is missing"),
                        "missing_tensor");
    }
    if (tensor->shape != required.shape) {
      return WithReason(
          DataLoss(source.path(), ": tensor \"", required.name, "\": shape ", tensor->shape.ToString(),
                   ", the configuration wants ", required.shape.ToString()),
          "shape_mismatch");
    }
    found.push_back({required, *tensor});
  }
  return found;
}

}  // namespace terrace
