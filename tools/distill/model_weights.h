// All weights of a model in f32, to be trained: read from a model, taken from some of its layers, or random.
// Values; memory is four bytes a weight.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/dtype.h"
#include "text/text_assets.h"
#include "worker/formats/model_config.h"
#include "worker/formats/model_files.h"

namespace terrace {

struct ModelWeights {
  ModelConfig config = {};                       // as of a folder: its names, its pairing of RoPE
  std::vector<std::vector<float>> tensors = {};  // in the order of RequiredTensors(config)
};

// Errors of LoadMatrix.
StatusOr<ModelWeights> LoadWeights(const ModelFiles& files, ThreadPool& pool);

// The model with `layers` of its layers, evenly spread, the first and the last among them. INVALID_ARGUMENT
// when there are not so many.
StatusOr<ModelWeights> TakeLayers(const ModelFiles& files, uint32_t layers, ThreadPool& pool);

// Matrices of deviation 1 / sqrt(inputs), those that add to the residual stream by sqrt(2 layers) less, as of
// GPT-2; norms are 1. The same values for the same seed.
ModelWeights RandomWeights(ModelConfig config, uint64_t seed);

// A quarter of the teacher's heads, keys and feed-forward part and of its width, half of its layers; its
// context and vocabulary. At least one of each.
ModelConfig DraftConfig(const ModelConfig& teacher);

// Rounds every matrix to `dtype` (F32, F16 or BF16), as WriteWeights stores them. INVALID_ARGUMENT for a
// value that it cannot hold.
Status RoundWeights(DType dtype, ModelWeights& weights);

// A folder that workers load: matrices in `dtype`, norms in F32. `temporary` and `before_rename` are as of
// ModelWriter.
StatusOr<Hash128> WriteWeights(const std::string& out, const ModelWeights& weights, const TextAssets& text,
                               DType dtype, const std::string& temporary,
                               const std::function<Status(const Hash128&)>& before_rename);

}  // namespace terrace
