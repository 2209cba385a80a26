// The shape of a model and the formats of its tensors: what the memory and time of each way to split it
// follow from. Values; no weights.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "worker/formats/model_config.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/weight_source.h"

namespace terrace {

struct ShapedTensor {
  TensorKind kind = TensorKind::kEmbedding;
  uint32_t layer = 0;
  Shape shape = {};
  DType dtype = DType::kF32;
};

struct ModelShape {
  ModelConfig config = {};
  std::vector<ShapedTensor> tensors = {};  // RequiredTensors(config)
  bool has_weights = true;                 // false: there is a configuration only, and formats were assumed
};

// Of a model that is there. Errors of WeightSource::Find.
StatusOr<ModelShape> ShapeOf(const ModelConfig& config, const WeightSource& weights);
// Of one whose weights are not: matrices are `dtype`, but where the configuration says how those of the
// layers are quantized, and norms F32. INVALID_ARGUMENT, reason bad_shape, where rows are not whole blocks.
StatusOr<ModelShape> ShapeOf(const ModelConfig& config, DType dtype);

// What is at `path`, of which only what names and describes tensors is read: a .gguf file or a folder, as of
// OpenWeights; a folder without weights, or its config.json, whose matrices are `dtype`, by default BF16.
// INVALID_ARGUMENT for a `dtype` of weights that are there; errors of OpenWeights and ParseConfigJson.
StatusOr<ModelShape> ReadModelShape(const std::string& path, std::optional<DType> dtype);

// "q8_0", "int4-g64": DTypeInfo::name, or INT4_G64, in any case and with - for _. INVALID_ARGUMENT names
// those there are.
StatusOr<DType> ParseDType(std::string_view name);

}  // namespace terrace
