// The shapes of models that are written without weights of their own: known ones by name, and changes to
// them. Values only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "worker/formats/model_config.h"

namespace terrace {

inline constexpr std::string_view kModelShapes[] = {"135m", "0.5b", "1b", "8b"};

// 135m, 1b and 8b are SmolLM2's, Llama 3.2's and Llama 3.1's (without RoPE scaling), 0.5b has Qwen 2.5's
// sizes in a Llama. INVALID_ARGUMENT for other names.
StatusOr<ModelConfig> FindModelShape(std::string_view name);

struct ShapeChanges {
  std::optional<uint32_t> layers = {}, hidden = {}, heads = {}, kv_heads = {}, head_dim = {}, ffn = {},
                          vocab = {}, context = {};
  std::optional<bool> tied = {};
};

// `config` with these changes. Where width or heads change and the head size does not, it is the width over
// the heads. INVALID_ARGUMENT with the flag's name and the numbers, for sizes that are out of range or do not
// divide.
StatusOr<ModelConfig> ChangeShape(ModelConfig config, const ShapeChanges& changes);

}  // namespace terrace
