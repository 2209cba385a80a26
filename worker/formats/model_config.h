// The hyper-parameters of a model, validated: every field is within the limits below and consistent with the
// others, so that code that holds a ModelConfig need not check again.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kernels/activation/gate_function.h"

namespace terrace {

enum class NameScheme : uint8_t { kHuggingFace, kGguf };  // how the file names its tensors
// Which elements of a head RoPE rotates together: i with i + head_dim/2 (Hugging Face), or 2i with 2i + 1
// (GGUF's llama, whose converters permute the rows of Q and K).
enum class RopePairing : uint8_t { kHalves, kNeighbours };

// How a folder stores the matrices of its layers (worker/formats/compressed_tensors.h).
struct WeightQuantization {
  uint32_t bits = 4;            // 4; or 8: a scale for each row, and activations rounded to 8 bits too
  uint32_t group = 128;         // of 4 bits: columns that share a scale; a multiple of 32
  bool has_zero_points = true;  // of 4 bits; without them the code 8 is zero
  bool has_int8_too = false;    // of 4 bits: some matrices are of 8 bits instead
  bool is_float = false;        // of 8 bits: FP8 E4M3, which becomes BF16 when it is opened; else INT8
  // What config.json tells other loaders of matrices that differ, by the names of their modules; here the
  // tensors of each matrix say what it is. The first two with has_int8_too; floats are only written, and tell
  // a writer of FP8 which matrices of BF16 stay as they are.
  std::vector<std::string> int4_modules = {}, int8_modules = {}, float_modules = {};
  friend bool operator==(const WeightQuantization&, const WeightQuantization&) = default;
};

// Positions beyond what a model was first trained for: the angle of pair p of a head is divided by divisor p.
struct RopeScaling {
  enum class Kind : uint8_t {
    kNone,
    kLinear,   // all by `factor` (Chen et al., "Extending Context Window of Large Language Models", 2023)
    kLlama3,   // fast pairs by 1, slow ones by `factor`, between them by what lies between (Llama 3.1)
    kDivisors  // by `divisors`, as GGUF's rope_freqs.weight has them
  };
  Kind kind = Kind::kNone;
  float factor = 1;
  // Of kLlama3: wavelengths of original_context / high_frequency positions are fast, those of
  // original_context / low_frequency slow.
  float low_frequency = 1, high_frequency = 4;
  uint32_t original_context = 8192;
  std::vector<float> divisors;  // [head_dim / 2]
  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

struct ModelConfig {
  std::string family;  // model_family.h
  std::string name;    // general.name, or the folder's name
  NameScheme names = NameScheme::kHuggingFace;
  RopePairing rope_pairing = RopePairing::kHalves;
  uint32_t vocab_size = 0;
  uint32_t context_length = 0;
  uint32_t hidden_size = 0;
  uint32_t layers = 0;
  uint32_t heads = 0;
  uint32_t kv_heads = 0;                 // divides heads
  uint32_t head_dim = 0;                 // even
  uint32_t ffn_size = 0;                 // of the widest layer; where there are experts, of one of them
  std::vector<uint32_t> ffn_sizes = {};  // of each layer, where they differ; else empty
  float norm_epsilon = 1e-5f;
  float rope_base = 10000.0f;
  RopeScaling rope_scaling;
  bool tied_embeddings = false;  // the output matrix is the embedding

  // A mixture of experts (kernels/moe/route_experts.h) in place of each layer's feed-forward; 0: none.
  uint32_t experts = 0;
  uint32_t experts_per_token = 0;
  bool normalizes_experts = false;  // the weights of a token's experts add up to 1

  // What families do otherwise than Llama.
  GateFunction gate = GateFunction::kSilu;
  bool has_attention_bias = false;  // of queries, keys and values
  bool has_head_norms = false;      // RMSNorm of each head of queries and keys, before RoPE
  bool has_post_norms = false;      // of what attention and feed-forward put out, before it is added
  bool norms_less_one = false;      // the file holds the weights of norms less 1
  float embedding_scale = 1;
  float attention_scale = 0;    // of scores; 0: 1 / sqrt(head_dim)
  float attention_softcap = 0;  // 0: none
  float logit_softcap = 0;      // 0: none
  // How many positions the tokens of each layer attend to, their own and those before it; 0: to all. Empty:
  // to all everywhere.
  std::vector<uint32_t> windows = {};
  float window_rope_base = 0;  // of layers with a window, without scaling; 0: they are as the others

  std::optional<WeightQuantization> quantization = {};  // of folders
  std::vector<std::string> warnings;  // what the file asks for and does not get: one line each, for the log

  uint32_t FfnSize(uint32_t layer) const { return ffn_sizes.empty() ? ffn_size : ffn_sizes[layer]; }
  // How many feed-forward networks a layer has: its experts, or one.
  uint32_t FfnCount() const { return experts > 0 ? experts : 1; }
  uint32_t Window(uint32_t layer) const { return windows.empty() ? 0 : windows[layer]; }
  float AttentionScale() const;
  // Whether its layer has an angle of its own (window_rope_base).
  bool HasWindowRope(uint32_t layer) const { return window_rope_base > 0 && Window(layer) > 0; }
};

// Limits of a ModelConfig; DATA_LOSS with reason bad_hparam (GGUF) or bad_config (config.json) beyond them.
inline constexpr uint32_t kMaxLayers = 1024, kMaxVocab = 1u << 20, kMaxContext = 1u << 24,
                          kMaxHidden = 1u << 17, kMaxFfn = 1u << 20, kMaxHeads = 1024, kMaxHeadDim = 1024,
                          kMaxExperts = 512, kMaxExpertsPerToken = 16, kMaxExpertsOfAllLayers = 1u << 16;

// Checks ranges and products. What is wrong comes from `error`, which gets the key, as files of the config's
// name scheme have it (GGUF's without the architecture in front), and what is wrong with its value.
Status ValidateModelConfig(
    const ModelConfig& config,
    const std::function<Status(std::string_view key, std::string_view message)>& error);

// Whether the model is what Llama 2 is, whatever its family: no switch is set, and RoPE is not scaled.
bool IsPlainLlama(const ModelConfig& config);

// [head_dim / 2], or empty where nothing is divided.
std::vector<float> RopeDivisors(const ModelConfig& config);

// Sets ffn_size and ffn_sizes from the sizes of all layers, which are not empty.
void SetFfnSizes(std::vector<uint32_t> sizes, ModelConfig& config);

// The key of config.json with the feed-forward sizes of the layers, where they differ: a list beside
// intermediate_size, which is the largest of them. Other loaders do not know it, and find that shapes of
// tensors are not as they expect.
inline constexpr std::string_view kFfnSizesKey = "terrace_intermediate_sizes";

// From the text of config.json, without the name. `file` names it in errors: DATA_LOSS with reasons
// bad_config, unsupported_architecture and those of ParseJson.
StatusOr<ModelConfig> ParseConfigJson(std::string_view text, const std::string& file);
// The inverse: the text of a config.json.
std::string ConfigJsonText(const ModelConfig& config);
// The same model as a folder has it.
ModelConfig AsFolderConfig(const ModelConfig& config);

// The text of generation_config.json: its sampling defaults are not used, but must be possible ones. Reason
// bad_config.
Status CheckGenerationConfig(std::string_view text, const std::string& file);

}  // namespace terrace
