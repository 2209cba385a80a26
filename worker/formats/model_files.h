// One model on disk, opened: a Hugging Face style folder (config.json, *.safetensors, tokenizer.json, ...) or
// a single .gguf file. Everything is validated before this returns; nothing large is allocated before that.
#pragma once

#include <memory>
#include <string>

#include "base/hash.h"
#include "base/status.h"
#include "text/text_assets.h"
#include "worker/formats/model_config.h"
#include "worker/formats/weight_source.h"

namespace terrace {

struct ModelFiles {
  ModelConfig config;
  std::unique_ptr<WeightSource> weights;
  std::shared_ptr<const TextAssets> text;  // tokenizer's vocab_size() <= config.vocab_size
  std::string format;                      // "safetensors" or "gguf"
  Hash128 digest;  // of all weight files, in order (MappedWeights::Digest), and of a folder's config.json
};

// DATA_LOSS (exit code 65) for malformed files, with reason, file, tensor or key, and byte offset in the
// message; NOT_FOUND for absent ones.
StatusOr<ModelFiles> OpenModel(const std::string& path);

// The configuration and weights alone, without `text` and `digest`, which would read all of the files. The
// same errors.
StatusOr<ModelFiles> OpenWeights(const std::string& path);

// The tokenizer and chat template alone; a folder needs no weights for that. The same errors.
StatusOr<TextAssets> OpenText(const std::string& path);

}  // namespace terrace
