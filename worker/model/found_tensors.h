// The tensors of a model where they lie. Pure functions of the configuration and the source.
#pragma once

#include <vector>

#include "base/status.h"
#include "worker/formats/model_config.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/weight_source.h"

namespace terrace {

struct FoundTensor {
  TensorRequirement required;
  TensorView tensor;  // borrows the source
};
// Every tensor of the model, in the order of its tensor map. DATA_LOSS, reason missing_tensor or
// shape_mismatch.
StatusOr<std::vector<FoundTensor>> FindTensors(const ModelConfig& config, const WeightSource& source);

}  // namespace terrace
