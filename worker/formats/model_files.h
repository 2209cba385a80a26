// One model on disk, opened: a Hugging Face style folder (config.json, *.safetensors, tokenizer.json, ...) or
// a single .gguf file. Everything is validated before this returns; nothing large is allocated before that.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/hash.h"
#include "base/status.h"
#include "text/text_assets.h"
#include "worker/formats/digest_list.h"
#include "worker/formats/mapped_weights.h"
#include "worker/formats/model_config.h"

namespace terrace {

struct ModelFiles {
  ModelConfig config;
  std::unique_ptr<MappedWeights> weights;
  std::shared_ptr<const TextAssets> text;  // tokenizer's vocab_size() <= config.vocab_size
  std::string format;                      // "safetensors" or "gguf"
  Hash128 digest;  // of all weight files, in order (DigestList::Digest), and of a folder's config.json
  DigestList digest_list;  // of the weight files: what `digest` is made of
  // Where `digest_list` was read, which then is a claim: no byte of the weight files may be used before it
  // has been verified. "": it was made of all their bytes.
  std::string digest_list_path = {};

  ListedFiles listed() const {
    return {.list = digest_list, .list_path = digest_list_path, .files = weights->files()};
  }
};

struct OpenModelOptions {
  // Takes the list at DigestListPath for true, where there is one, instead of reading all of the weights: for
  // who verifies what it uses.
  bool use_digest_list = false;
  std::function<bool()> is_cancelled = nullptr;  // asked while the weights are read for their digest
};

// DATA_LOSS (exit code 65) for malformed files, with reason, file, tensor or key, and byte offset in the
// message; NOT_FOUND for absent ones; CANCELLED.
StatusOr<ModelFiles> OpenModel(const std::string& path, const OpenModelOptions& options = {});

// The configuration and weights alone, without `text` and the digests, which would read all of the files. The
// same errors.
StatusOr<ModelFiles> OpenWeights(const std::string& path);

// The tokenizer and chat template alone; a folder needs no weights for that. The same errors.
StatusOr<TextAssets> OpenText(const std::string& path);

}  // namespace terrace
