#include "worker/formats/model_family.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"

namespace terrace {
namespace {

constexpr ModelFamily kFamilies[] = {
    {.name = "llama",
     .hugging_face = "LlamaForCausalLM",
     .gguf = "llama",
     .gguf_pairing = RopePairing::kNeighbours},
    {.name = "mistral",
     .hugging_face = "MistralForCausalLM",
     .gguf = "llama",
     .gguf_pairing = RopePairing::kNeighbours,
     .defaults = {.kv_heads = 8, .window = 4096}},
    {.name = "qwen2",
     .hugging_face = "Qwen2ForCausalLM",
     .gguf = "qwen2",
     .has_attention_bias = true,
     .defaults = {.kv_heads = 32, .window = 4096}},
    {.name = "qwen3",
     .hugging_face = "Qwen3ForCausalLM",
     .gguf = "qwen3",
     .has_head_norms = true,
     .defaults = {.kv_heads = 32, .head_dim = 128, .window = 4096}},
    {.name = "gemma2",
     .hugging_face = "Gemma2ForCausalLM",
     .gguf = "gemma2",
     .is_gemma = true,
     .window_pattern = 2,
     .defaults = {.kv_heads = 4,
                  .head_dim = 256,
                  .window = 4096,
                  .attention_softcap = 50,
                  .logit_softcap = 30,
                  .tied_embeddings = true}},
    {.name = "gemma3_text",
     .hugging_face = "Gemma3ForCausalLM",
     .gguf = "gemma3",
     .is_gemma = true,
     .has_head_norms = true,
     .window_pattern = 6,
     .defaults = {.kv_heads = 4,
                  .head_dim = 256,
                  .window = 4096,
                  .rope_base = 1e6f,
                  .window_rope_base = 1e4f,
                  .tied_embeddings = true}},
    {.name = "mixtral",
     .hugging_face = "MixtralForCausalLM",
     .gguf = "llama",
     .gguf_pairing = RopePairing::kNeighbours,
     .has_experts = true,
     .experts_key = "num_local_experts",
     .defaults =
         {.kv_heads = 8, .experts = 8, .experts_per_token = 2, .norm_epsilon = 1e-5f, .rope_base = 1e6f}},
    {.name = "qwen3_moe",
     .hugging_face = "Qwen3MoeForCausalLM",
     .gguf = "qwen3moe",
     .has_experts = true,
     .has_expert_width = true,
     .has_head_norms = true,
     .defaults = {.kv_heads = 4, .experts = 128, .experts_per_token = 8, .expert_width = 768}},
};

const ModelFamily* Find(std::string_view ModelFamily::*name, std::string_view value) {
  const auto found = std::ranges::find(kFamilies, value, name);
  return found == std::end(kFamilies) ? nullptr : found;
}

std::string Quoted(std::string_view ModelFamily::*name) {
  std::string names;
  for (const ModelFamily& family : kFamilies) {
    if (Find(name, family.*name) != &family) continue;  // listed already
    names += Concat(names.empty() ? "\"" : ", \"", family.*name, "\"");
  }
  return names;
}

}  // namespace

const ModelFamily* FindModelFamily(std::string_view name) { return Find(&ModelFamily::name, name); }
const ModelFamily* FindGgufFamily(std::string_view architecture) {
  return Find(&ModelFamily::gguf, architecture);
}
const ModelFamily* FindGgufFamily(std::string_view architecture, bool has_experts) {
  const auto found = std::ranges::find_if(kFamilies, [&](const ModelFamily& family) {
    return family.gguf == architecture && family.has_experts == has_experts;
  });
  return found == std::end(kFamilies) ? nullptr : found;
}
void SetSwitches(const ModelFamily& family, ModelConfig& config) {
  config.has_attention_bias = family.has_attention_bias;
  config.has_head_norms = family.has_head_norms;
  config.norms_less_one = config.has_post_norms = family.is_gemma;
  config.gate = family.is_gemma ? GateFunction::kGelu : GateFunction::kSilu;
  config.embedding_scale = family.is_gemma ? std::sqrt(static_cast<float>(config.hidden_size)) : 1;
}

std::string FamilyNames() { return Quoted(&ModelFamily::name); }
std::string GgufArchitectures() { return Quoted(&ModelFamily::gguf); }

}  // namespace terrace
