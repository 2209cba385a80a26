#include "worker/formats/model_family.h"

#include <algorithm>

#include "base/status.h"

namespace terrace {
namespace {

constexpr ModelFamily kFamilies[] = {
    {"llama", "LlamaForCausalLM", "llama", RopePairing::kNeighbours},
    {"mistral", "MistralForCausalLM", "llama", RopePairing::kNeighbours},
    {"qwen2", "Qwen2ForCausalLM", "qwen2"},
    {"qwen3", "Qwen3ForCausalLM", "qwen3"},
    {"gemma2", "Gemma2ForCausalLM", "gemma2"},
    {"gemma3_text", "Gemma3ForCausalLM", "gemma3"},
    {"mixtral", "MixtralForCausalLM", "llama", RopePairing::kNeighbours, /*has_experts=*/true},
    {"qwen3_moe", "Qwen3MoeForCausalLM", "qwen3moe", RopePairing::kHalves, /*has_experts=*/true},
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
std::string FamilyNames() { return Quoted(&ModelFamily::name); }
std::string GgufArchitectures() { return Quoted(&ModelFamily::gguf); }

}  // namespace terrace
