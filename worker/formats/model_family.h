// The families of models that there are, and what files call them. What a family does otherwise than Llama is
// a switch of ModelConfig, which one transformer reads; the tensors follow from the switches
// (tensor_names.h). Constants of the process.
#pragma once

#include <cstdint>
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
  // Of config.json; and whether the width of an expert has a key of its own, where the usual one has that of
  // layers without experts.
  std::string_view experts_key = "num_experts";
  bool has_expert_width = false;

  // What no key of GGUF says, nor of config.json, but for the gate.
  bool is_gemma = false;  // norms less one, a norm after each half, gated by GELU, scaled embeddings
  bool has_attention_bias = false, has_head_norms = false;
  uint32_t window_pattern = 0;  // every so many layers one has no window; 0: none or all have one

  // What transformers takes where config.json leaves the key out; a head_dim of 0 is the hidden size by the
  // heads, kv_heads of 0 are as many as heads.
  struct Defaults {
    uint32_t kv_heads = 0, head_dim = 0;
    uint32_t window = 0;
    uint32_t experts = 0, experts_per_token = 0, expert_width = 0;
    float norm_epsilon = 1e-6f, rope_base = 1e4f, window_rope_base = 0;
    float attention_softcap = 0, logit_softcap = 0;
    bool tied_embeddings = false;
  };
  Defaults defaults = {};
};

// Null when there is none of the name.
const ModelFamily* FindModelFamily(std::string_view name);
// The first of an architecture of GGUF, or null; and the first of those with or without experts.
const ModelFamily* FindGgufFamily(std::string_view architecture);
const ModelFamily* FindGgufFamily(std::string_view architecture, bool has_experts);

// What follows from the family and the sizes, without a key: biases, norms, the gate and the scale of
// embeddings. Norms are as a folder has them.
void SetSwitches(const ModelFamily& family, ModelConfig& config);

// The names in quotes, for messages: "\"llama\", \"mistral\"".
std::string FamilyNames();
std::string GgufArchitectures();

}  // namespace terrace
