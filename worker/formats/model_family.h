// The families of models that there are, and what files call them. What a family does otherwise than Llama is
// a switch of ModelConfig, which one transformer reads; the tensors follow from the switches
// (tensor_names.h). Constants of the process.
#pragma once

#include <string>
#include <string_view>

#include "worker/formats/model_config.h"

namespace terrace {

struct ModelFamily {
  std::string_view name;                            // ModelConfig::family, and model_type in config.json
  std::string_view hugging_face;                    // the only one of config.json's "architectures"
  std::string_view gguf;                            // general.architecture, which may be that of several
  RopePairing gguf_pairing = RopePairing::kHalves;  // as converters leave the rows of Q and K
  bool has_experts = false;
};

// Null when there is none of the name.
const ModelFamily* FindModelFamily(std::string_view name);
// The first of an architecture of GGUF, or null; and the first of those with or without experts.
const ModelFamily* FindGgufFamily(std::string_view architecture);
const ModelFamily* FindGgufFamily(std::string_view architecture, bool has_experts);

// The names in quotes, for messages: "\"llama\", \"mistral\"".
std::string FamilyNames();
std::string GgufArchitectures();

}  // namespace terrace
