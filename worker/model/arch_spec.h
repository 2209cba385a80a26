// What tells one model family from another, as data; everything else is the one Transformer. Constants of the
// process.
#pragma once

#include <string_view>
#include <vector>

#include "base/status.h"
#include "worker/formats/model_config.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/weight_source.h"

namespace terrace {

struct ArchSpec {
  std::string_view family;  // ModelConfig::family
  // The tensor map: every tensor of a model of this family, with its name in the file and its shape.
  std::vector<TensorRequirement> (*required_tensors)(const ModelConfig&) = nullptr;
};

// DATA_LOSS, reason unsupported_architecture, names the families there are.
StatusOr<const ArchSpec*> FindArchSpec(std::string_view family);

struct FoundTensor {
  TensorRequirement required;
  TensorView tensor;  // borrows the source
};
// Every tensor of the model, in the order of its tensor map. DATA_LOSS, reason missing_tensor or
// shape_mismatch.
StatusOr<std::vector<FoundTensor>> FindTensors(const ModelConfig& config, const WeightSource& source);

}  // namespace terrace
