#include "tools/optimize/model_shapes.h"

#include <iterator>

namespace terrace {
namespace {

struct Sizes {
  uint32_t layers, hidden, heads, kv_heads, head_dim, ffn, vocab, context;
  float norm_epsilon, rope_base;
  bool tied;
};

// In the order of kModelShapes.
constexpr Sizes kSizes[] = {
    {30, 576, 9, 3, 64, 1536, 49'152, 8192, 1e-5f, 100'000, true},
    {24, 896, 14, 2, 64, 4864, 151'936, 32'768, 1e-6f, 1'000'000, true},
    {16, 2048, 32, 8, 64, 8192, 128'256, 131'072, 1e-5f, 500'000, true},
    {32, 4096, 32, 8, 128, 14'336, 128'256, 131'072, 1e-5f, 500'000, false},
};
static_assert(std::size(kSizes) == std::size(kModelShapes));

ModelConfig WithSizes(const Sizes& sizes) {
  ModelConfig config;
  config.family = "llama";
  config.layers = sizes.layers;
  config.hidden_size = sizes.hidden;
  config.heads = sizes.heads;
  config.kv_heads = sizes.kv_heads;
  config.head_dim = sizes.head_dim;
  config.ffn_size = sizes.ffn;
  config.vocab_size = sizes.vocab;
  config.context_length = sizes.context;
  config.norm_epsilon = sizes.norm_epsilon;
  config.rope_base = sizes.rope_base;
  config.tied_embeddings = sizes.tied;
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
  std::string known;
  for (size_t i = 0; i < std::size(kModelShapes); ++i) {
    if (kModelShapes[i] == name) return WithSizes(kSizes[i]);
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
  if (changes.ffn || changes.layers) config.ffn_sizes.clear();
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
