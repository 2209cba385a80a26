// The hyper-parameters of a model, validated: every field is within the limits below and consistent with the
// others, so that code that holds a ModelConfig need not check again.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

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
  // tensors of each matrix say what it is. The first two with has_int8_too; floats are only written.
  std::vector<std::string> int4_modules = {}, int8_modules = {}, float_modules = {};
  friend bool operator==(const WeightQuantization&, const WeightQuantization&) = default;
};

struct ModelConfig {
  std::string family;  // "llama"
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
  uint32_t ffn_size = 0;                 // of the widest layer
  std::vector<uint32_t> ffn_sizes = {};  // of each layer, where they differ; else empty
  float norm_epsilon = 1e-5f;
  float rope_base = 10000.0f;
  bool tied_embeddings = false;                         // the output matrix is the embedding
  std::optional<WeightQuantization> quantization = {};  // of folders
  std::vector<std::string> warnings;  // what the file asks for and does not get: one line each, for the log

  uint32_t FfnSize(uint32_t layer) const { return ffn_sizes.empty() ? ffn_size : ffn_sizes[layer]; }
};

// Limits of a ModelConfig; DATA_LOSS with reason bad_hparam (GGUF) or bad_config (config.json) beyond them.
inline constexpr uint32_t kMaxLayers = 1024, kMaxVocab = 1u << 20, kMaxContext = 1u << 24,
                          kMaxHidden = 1u << 17, kMaxFfn = 1u << 20, kMaxHeads = 1024, kMaxHeadDim = 1024;

// Checks ranges and products. What is wrong comes from `error`, which gets the key, as files of the config's
// name scheme have it, and what is wrong with its value.
Status ValidateModelConfig(
    const ModelConfig& config,
    const std::function<Status(std::string_view key, std::string_view message)>& error);

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

// The text of generation_config.json: its sampling defaults are not used, but must be possible ones. Reason
// bad_config.
Status CheckGenerationConfig(std::string_view text, const std::string& file);

}  // namespace terrace
