#include "tools/optimize/model_shapes.h"

namespace terrace {
namespace {

ModelConfig Shape135m() {
  ModelConfig config;
  config.vocab_size = 49152;
  config.context_length = 8192;
  config.hidden_size = 576;
  config.layers = 30;
  config.heads = 9;
  config.kv_heads = 3;
  config.head_dim = 64;
  config.ffn_size = 1536;
  config.rope_base = 100'000;
  config.tied_embeddings = true;
  return config;
}

ModelConfig Shape05b() {
  ModelConfig config;
  config.vocab_size = 151'936;
  config.context_length = 32'768;
  config.hidden_size = 896;
  config.layers = 24;
  config.heads = 14;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.ffn_size = 4864;
  config.norm_epsilon = 1e-6f;
  config.rope_base = 1'000'000;
  config.tied_embeddings = true;
  return config;
}

ModelConfig Shape1b() {
  ModelConfig config;
  config.vocab_size = 128'256;
  config.context_length = 131'072;
  config.hidden_size = 2048;
  config.layers = 16;
  config.heads = 32;
  config.kv_heads = 8;
  config.head_dim = 64;
  config.ffn_size = 8192;
  config.rope_base = 500'000;
  config.tied_embeddings = true;
  return config;
}

ModelConfig Shape8b() {
  ModelConfig config = Shape1b();
  config.hidden_size = 4096;
  config.layers = 32;
  config.head_dim = 128;
  config.ffn_size = 14'336;
  config.tied_embeddings = false;
  return config;
}

// The flag that sets what config.json calls `key`.
std::string_view FlagOf(std::string_view key) {
  constexpr struct {
    std::string_view key, flag;
  } kFlags[] = {{"vocab_size", "--vocab"},          {"max_position_embeddings", "--context"},
                {"hidden_size", "--hidden"},        {"num_hidden_layers", "--layers"},
                {"num_attention_heads", "--heads"}, {"num_key_value_heads", "--kv-heads"},
                {"head_dim", "--head-dim"},         {"intermediate_size", "--ffn"}};
  for (const auto& [name, flag] : kFlags) {
    if (name == key) return flag;
  }
  return key;
}

}  // namespace

StatusOr<ModelConfig> FindModelShape(std::string_view name) {
  constexpr ModelConfig (*kMakers[])() = {Shape135m, Shape05b, Shape1b, Shape8b};
  static_assert(std::size(kMakers) == std::size(kModelShapes));
  std::string known;
  for (size_t i = 0; i < std::size(kModelShapes); ++i) {
    if (kModelShapes[i] == name) {
      ModelConfig config = kMakers[i]();
      config.family = "llama";
      return config;
    }
    known += Concat(i == 0 ? "" : ", ", kModelShapes[i]);
  }
  return InvalidArgument("--shape: \"", name, "\" is not one of ", known);
}

StatusOr<ModelConfig> ChangeShape(ModelConfig config, const ShapeChanges& changes) {
  config.layers = changes.layers.value_or(config.layers);
  config.hidden_size = changes.hidden.value_or(config.hidden_size);
  config.heads = changes.heads.value_or(config.heads);
  config.kv_heads = changes.kv_heads.value_or(config.kv_heads);
  config.ffn_size = changes.ffn.value_or(config.ffn_size);
  config.vocab_size = changes.vocab.value_or(config.vocab_size);
  config.context_length = changes.context.value_or(config.context_length);
  config.tied_embeddings = changes.tied.value_or(config.tied_embeddings);
  if (changes.head_dim) {
    config.head_dim = *changes.head_dim;
  } else if ((changes.hidden || changes.heads) && config.heads != 0) {
    if (config.hidden_size % config.heads != 0)
      return InvalidArgument("--heads: ", config.heads, " does not divide the width ", config.hidden_size,
                             ", and there is no --head-dim");
    config.head_dim = config.hidden_size / config.heads;
  }
  RETURN_IF_ERROR(ValidateModelConfig(config, [](std::string_view key, std::string_view message) {
    return InvalidArgument(FlagOf(key), ": ", message);
  }));
  return config;
}

}  // namespace terrace
