#include "worker/model/arch_spec.h"

namespace terrace {
namespace {

constexpr ArchSpec kArchSpecs[] = {
    {.family = "llama", .required_tensors = RequiredTensors},
};

}  // namespace

StatusOr<const ArchSpec*> FindArchSpec(std::string_view family) {
  std::string known;
  for (const ArchSpec& spec : kArchSpecs) {
    if (spec.family == family) return &spec;
    known += Concat(known.empty() ? "" : ", ", spec.family);
  }
  return WithReason(DataLoss("model family \"", family, "\", not one of ", known),
                    "unsupported_architecture");
}

StatusOr<std::vector<FoundTensor>> FindTensors(const ModelConfig& config, const WeightSource& source) {
  ASSIGN_OR_RETURN(const ArchSpec* spec, FindArchSpec(config.family));
  std::vector<FoundTensor> found;
  for (const TensorRequirement& required : spec->required_tensors(config)) {
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
