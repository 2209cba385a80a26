// The hyper-parameters of a Llama-family model in a GGUF file.
#pragma once

#include <string>
#include <vector>

#include "worker/formats/gguf_writer.h"
#include "worker/formats/model_config.h"

namespace terrace {

// DATA_LOSS naming `file`, the key and its byte offset, with reasons bad_hparam, unsupported_architecture,
// missing_key, type_mismatch, and bad_split for one part of a split model. The name is general.name, "" when
// there is none.
StatusOr<ModelConfig> ParseGgufConfig(const GgufFile& gguf, const std::string& file);

// The inverse. Tied embeddings have no key: they are the absence of an output matrix. Without a name there is
// no general.name.
std::vector<GgufKey> GgufConfigKeys(const ModelConfig& config);

// The same model as a .gguf file has it. INVALID_ARGUMENT for what its keys cannot say.
StatusOr<ModelConfig> AsGgufConfig(const ModelConfig& config);

}  // namespace terrace
