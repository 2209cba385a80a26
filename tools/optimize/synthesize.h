// Writes a model of a given shape with random weights, for measurements of shapes whose weights are not at
// hand: a .gguf file or a model folder that workers load. The bytes follow from the request alone; memory is
// a few MiB, whatever the model's size.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/hash.h"
#include "base/status.h"
#include "kernels/dtype.h"
#include "text/text_assets.h"
#include "worker/formats/model_config.h"
#include "worker/formats/tensor_names.h"

namespace terrace {

enum class ModelFormat : uint8_t { kGguf, kSafetensors };

struct ModelToSynthesize {
  std::string path;
  ModelFormat format = ModelFormat::kGguf;
  ModelConfig config;  // valid; its naming follows the format
  // Of the matrices but those that choose experts, which are F32, as in llama.cpp's files; norms are F32
  // and 1.
  DType dtype = DType::kF16;
  // llama.cpp's "_M" mixture: Q6_K for the output matrix and, in about half of the layers, for values and
  // down projections.
  bool more_bits = false;
  uint64_t seed = 0;  // the same seed gives the same weights in both formats
  TextAssets text;    // at most config.vocab_size tokens
  size_t threads = 1;
  // Called now and then with bytes of the weights; an error of it ends the work and is returned.
  std::function<Status(uint64_t done, uint64_t total)> on_progress = [](uint64_t, uint64_t) {
    return Status();
  };
};

struct SynthesizedModel {
  uint64_t parameters = 0;
  uint64_t weight_bytes = 0;
  Hash128 digest;  // ModelFiles::digest
};

// The dtype of one matrix. Rows that are not whole blocks of 256 take Q5_0 for Q4_K and Q8_0 for Q6_K, as
// llama.cpp's files do.
DType SynthesizedDType(const ModelToSynthesize& request, const TensorRequirement& tensor);

// On an error nothing is left at `path`: INVALID_ARGUMENT for what cannot be written (a path that is taken,
// Q8_0 in a folder or with rows that are not whole blocks, a vocabulary that is too small),
// RESOURCE_EXHAUSTED for a full disk.
StatusOr<SynthesizedModel> Synthesize(const ModelToSynthesize& request);

}  // namespace terrace
