#include "tools/plan/model_shape.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "base/json.h"
#include "base/mapped_file.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxConfigBytes = 8 << 20;
constexpr std::string_view kInt4G64 = "INT4_G64";

// The config.json that is all there is of a model; nothing where there are weights, or no model at all.
std::optional<std::string> LoneConfig(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    return path.ends_with(".json") ? std::optional(path) : std::nullopt;
  }
  const std::string config = path + "/config.json";
  if (!fs::exists(config, error)) return std::nullopt;
  for (fs::directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() == ".safetensors") return std::nullopt;
  }
  return error ? std::nullopt : std::optional(config);
}

char Folded(char c) {
  if (c == '-') return '_';
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool IsSameName(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](char x, char y) { return Folded(x) == Folded(y); });
}

}  // namespace

StatusOr<ModelShape> ShapeOf(const ModelConfig& config, const WeightSource& weights) {
  ModelShape shape{.config = config};
  for (const TensorRequirement& required : RequiredTensors(config)) {
    ASSIGN_OR_RETURN(const TensorView tensor, weights.Find(required.name));
    shape.tensors.push_back(
        {.kind = required.kind, .layer = required.layer, .shape = required.shape, .dtype = tensor.dtype});
  }
  return shape;
}

StatusOr<ModelShape> ShapeOf(const ModelConfig& config, DType dtype) {
  ModelShape shape{.config = config, .has_weights = false};
  for (const TensorRequirement& required : RequiredTensors(config)) {
    ShapedTensor& tensor = shape.tensors.emplace_back();
    tensor = {.kind = required.kind, .layer = required.layer, .shape = required.shape};
    if (IsVector(required.kind)) continue;
    const bool is_quantized =
        config.quantization.has_value() && IsPerLayer(required.kind) && required.kind != TensorKind::kRouter;
    tensor.dtype = is_quantized ? KernelDType(*config.quantization) : dtype;
    if (const Status fits = ByteCount(tensor.dtype, tensor.shape).status(); !fits.ok())
      return Annotate(fits, required.name);
  }
  return shape;
}

StatusOr<ModelShape> ReadModelShape(const std::string& path, std::optional<DType> dtype) {
  if (const std::optional<std::string> file = LoneConfig(path); file.has_value()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(*file, kMaxConfigBytes));
    ASSIGN_OR_RETURN(ModelConfig config, ParseConfigJson(text, *file));
    config.name = path;
    return ShapeOf(config, dtype.value_or(DType::kBF16));
  }
  if (dtype.has_value())
    return InvalidArgument(path, ": its weights have formats of their own, and are not ", Info(*dtype).name,
                           " instead");
  ASSIGN_OR_RETURN(const ModelFiles files, OpenWeights(path));
  return ShapeOf(files.config, *files.weights);
}

StatusOr<DType> ParseDType(std::string_view name) {
  std::string known;
  for (const DTypeInfo& info : kDTypes) {
    if (IsSameName(info.name, name)) return info.dtype;
    known += Concat(known.empty() ? "" : ", ", info.name);
  }
  if (IsSameName(name, kInt4G64)) return DType::kInt4G32;  // which becomes that when it is opened
  return InvalidArgument("\"", name, "\" is not one of ", known, ", ", kInt4G64);
}

}  // namespace terrace
