#include "worker/formats/model_files.h"

#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "base/json.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/expert_stacks.h"
#include "worker/formats/file_kind.h"
#include "worker/formats/gguf_config.h"
#include "worker/formats/gguf_file.h"
#include "worker/formats/gguf_tokenizer.h"
#include "worker/formats/safetensors_file.h"
#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

constexpr size_t kMaxConfigBytes = 8 << 20;

// Where in its data the first weight is that is infinite or not a number, by the exponents. Not for quantized
// tensors.
std::optional<uint64_t> FirstNonFinite(const TensorView& tensor) {
  const uint64_t block_bytes = Info(tensor.dtype).block_bytes;
  const uint32_t exponent = tensor.dtype == DType::kF32    ? 0x7F80'0000
                            : tensor.dtype == DType::kBF16 ? 0x7F80
                                                           : 0x7C00;
  for (uint64_t at = 0; at < tensor.bytes; at += block_bytes) {
    const std::span<const std::byte> block(tensor.data + at, block_bytes);
    const uint32_t bits =
        tensor.dtype == DType::kF32 ? ByteReader::Load<uint32_t>(block) : ByteReader::Load<uint16_t>(block);
    if ((bits & exponent) == exponent) return at;
  }
  return std::nullopt;
}

template <typename... Text>
Status TensorError(std::string_view reason, const WeightSource::Entry& entry, const Text&... message) {
  return Malformed(reason, entry.file, ": tensor \"", entry.name, "\": ", message..., " (data at byte ",
                   entry.offset, ")");
}

// Whether such a tensor has a part in what a model computes: what of it families have is required. The others
// are an expert that all tokens go to, what is added to choices of experts, factors of matrices.
bool ChangesResults(std::string_view name) {
  for (const std::string_view end : {".bias", "norm.weight", ".scale"}) {
    if (name.ends_with(end)) return true;
  }
  for (const std::string_view part :
       {"shexp", "shared_expert", "exp_probs_b", "e_score_correction_bias", ".experts."}) {
    if (name.find(part) != name.npos) return true;
  }
  return !StackOf(name).empty();
}

// Everything the model needs is there in the right shape. Other tensors are tolerated, but for those that
// would have to change the results. Vectors are scanned for values that are not finite: they touch every
// activation, and are small; larger tensors are not read here.
Status CheckTensors(const ModelConfig& config, const WeightSource& weights) {
  std::map<std::string_view, const WeightSource::Entry*> entries;
  for (const auto& entry : weights.entries()) {
    entries.emplace(entry.name, &entry);
  }
  const std::vector<TensorRequirement> all = RequiredTensors(config);
  std::set<std::string_view> names;
  for (const TensorRequirement& required : all) names.insert(required.name);
  for (const auto& entry : weights.entries()) {
    if (ChangesResults(entry.name) && !names.contains(entry.name))
      return TensorError("unsupported_tensor", entry, "models of the family ", config.family,
                         " have none, or not so many");
  }
  for (const TensorRequirement& required : all) {
    const auto found = entries.find(required.name);
    if (found == entries.end())
      return Malformed("missing_tensor", weights.path(), ": tensor \"", required.name, "\": is missing");
    const WeightSource::Entry& entry = *found->second;
    if (entry.tensor.shape != required.shape)
      return TensorError("shape_mismatch", entry, "shape ", entry.tensor.shape.ToString(),
                         ", the configuration wants ", required.shape.ToString());
    if (!IsVector(required.kind)) continue;
    if (Info(entry.tensor.dtype).block_elements > 1)
      return TensorError("bad_dtype", entry, "a vector is not quantized");
    if (required.kind == TensorKind::kRopeDivisors && entry.tensor.dtype != DType::kF32)
      return TensorError("bad_dtype", entry, "is not of F32");
    if (const auto at = FirstNonFinite(entry.tensor))
      return TensorError("nonfinite", entry, "the value at byte ", entry.offset + *at,
                         " is infinite or not a number");
  }
  return Status();
}

Status CheckVocabulary(const ModelConfig& config, const TextAssets& text) {
  if (text.tokenizer->vocab_size() <= config.vocab_size) return Status();
  return Malformed("vocab_size", "the tokenizer has ", text.tokenizer->vocab_size(),
                   " tokens, the model's vocab_size is ", config.vocab_size);
}

// "nano" for "/models/nano/" as well as for ".", when that is where we are.
std::string FolderName(const std::string& path) {
  std::error_code error;
  const auto whole = std::filesystem::absolute(path, error).lexically_normal();
  return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
}

StatusOr<std::string> ReadConfig(const std::string& path) {
  auto text = ReadFile(path, kMaxConfigBytes);
  if (text.status().code() == StatusCode::kResourceExhausted)
    return Malformed("json_limit", Message(text.status()));
  return text;
}

// The configuration of `model`, from the text of config.json, and the weights.
StatusOr<std::unique_ptr<MappedWeights>> OpenFolderWeights(const std::string& path, const std::string& config,
                                                           ModelFiles& model) {
  const std::string config_path = path + "/config.json", generation_path = path + "/generation_config.json";
  model.format = "safetensors";
  ASSIGN_OR_RETURN(model.config, ParseConfigJson(config, config_path));
  model.config.name = FolderName(path);
  if (const auto generation = ReadConfig(generation_path); generation.ok()) {
    RETURN_IF_ERROR(CheckGenerationConfig(*generation, generation_path));
  } else if (generation.status().code() != StatusCode::kNotFound) {
    return generation.status();
  }

  const auto& quantization = model.config.quantization;
  ASSIGN_OR_RETURN(auto weights, OpenSafetensors(path, quantization ? &*quantization : nullptr));
  RETURN_IF_ERROR(CheckTensors(model.config, *weights));
  return weights;
}

// The list of digests of model.weights; `path` is the model's.
Status SetDigestList(const std::string& path, const OpenModelOptions& options, ModelFiles& model) {
  if (options.use_digest_list) {
    const std::string list_path = DigestListPath(path);
    auto list = ReadDigestList(list_path);
    if (list.ok()) {
      model.digest_list = *std::move(list);
      model.digest_list_path = list_path;
      return CheckNamesAndSizes(model.listed());
    }
    if (list.status().code() != StatusCode::kNotFound) return list.status();
  }
  ASSIGN_OR_RETURN(model.digest_list, MakeDigestList(model.weights->files(), options.is_cancelled));
  return {};
}

StatusOr<ModelFiles> OpenFolder(const std::string& path, const OpenModelOptions& options) {
  ASSIGN_OR_RETURN(const std::string config, ReadConfig(path + "/config.json"));
  ModelFiles model;
  ASSIGN_OR_RETURN(model.weights, OpenFolderWeights(path, config, model));
  auto text = LoadTextAssets(path);
  if (!text.ok()) return AsDataLoss(text.status());
  RETURN_IF_ERROR(Annotate(CheckVocabulary(model.config, *text), path + "/tokenizer.json"));
  model.text = std::make_shared<const TextAssets>(*std::move(text));
  RETURN_IF_ERROR(SetDigestList(path, options, model));
  // The configuration says what the weights mean (rope_theta); a GGUF file has it among its bytes.
  const Hash128 of_weights = model.digest_list.Digest();
  model.digest = Hasher().Add(of_weights.high).Add(of_weights.low).Add(config).Finish();
  return model;
}

// The configuration of `model`; the weights stay in `gguf`.
Status SetGgufConfig(const GgufFile& gguf, const std::string& path, ModelFiles& model) {
  model.format = "gguf";
  ASSIGN_OR_RETURN(model.config, ParseGgufConfig(gguf, path));
  if (model.config.name.empty()) model.config.name = std::filesystem::path(path).stem().string();
  return CheckTensors(model.config, *gguf.weights);
}

StatusOr<ModelFiles> OpenGgufModel(const std::string& path, const OpenModelOptions& options) {
  ASSIGN_OR_RETURN(GgufFile gguf, OpenGguf(path));
  ModelFiles model;
  RETURN_IF_ERROR(SetGgufConfig(gguf, path, model));
  ASSIGN_OR_RETURN(TextAssets text, LoadGgufText(gguf.metadata, path));
  if (const Status fits = CheckVocabulary(model.config, text); !fits.ok())
    return Annotate(gguf.metadata.Error(Reason(fits), "tokenizer.ggml.tokens", Message(fits)), path);
  model.text = std::make_shared<const TextAssets>(std::move(text));
  model.weights = std::move(gguf.weights);
  RETURN_IF_ERROR(SetDigestList(path, options, model));
  model.digest = model.digest_list.Digest();
  return model;
}

Status CheckIsGguf(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, MappedFile::Open(path));
  RETURN_IF_ERROR(Annotate(RefuseForeignFormat(file->bytes()), path));
  if (!path.ends_with(".gguf") && !AsText(file->bytes()).starts_with("GGUF"))
    return Malformed("unsupported_format", path, ": is neither a .gguf file nor a folder with config.json");
  return Status();
}

}  // namespace

StatusOr<ModelFiles> OpenModel(const std::string& path, const OpenModelOptions& options) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return OpenFolder(path, options);
  RETURN_IF_ERROR(CheckIsGguf(path));
  return OpenGgufModel(path, options);
}

StatusOr<ModelFiles> OpenWeights(const std::string& path) {
  ModelFiles model;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    ASSIGN_OR_RETURN(const std::string config, ReadConfig(path + "/config.json"));
    ASSIGN_OR_RETURN(model.weights, OpenFolderWeights(path, config, model));
    return model;
  }
  RETURN_IF_ERROR(CheckIsGguf(path));
  ASSIGN_OR_RETURN(GgufFile gguf, OpenGguf(path));
  RETURN_IF_ERROR(SetGgufConfig(gguf, path, model));
  model.weights = std::move(gguf.weights);
  return model;
}

StatusOr<TextAssets> OpenText(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    auto text = LoadTextAssets(path);
    if (!text.ok()) return AsDataLoss(text.status());
    return text;
  }
  RETURN_IF_ERROR(CheckIsGguf(path));
  ASSIGN_OR_RETURN(const GgufFile gguf, OpenGguf(path));
  return LoadGgufText(gguf.metadata, path);
}

}  // namespace terrace
