// Writes a model of any size with random weights, for measurements of loading: a .gguf file whose tokenizer
// has as many tokens and merges as its vocabulary, as those of trained models. All cores write.
#pragma once

#include <string>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/dtype.h"
#include "worker/formats/model_config.h"

namespace terrace {

// The matrices of the layers are of `layers`, kBF16 or kQ4_0; embedding and output bf16, norms f32.
// Activations keep their size. Replaces what is at `path`. A vocabulary of 260 at least and 190'000 at most.
Status WriteLargeModel(const std::string& path, const ModelConfig& config, DType layers, ThreadPool& pool);

}  // namespace terrace
