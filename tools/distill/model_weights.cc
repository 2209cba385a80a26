#include "tools/distill/model_weights.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/quant/weight_values.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/random_weights.h"
#include "worker/formats/model_writer.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/weight_encoding.h"

namespace terrace {
namespace {

// As a folder has it.
ModelConfig FolderConfig(ModelConfig config) {
  config.name.clear();  // a model is named after its path
  config.warnings.clear();
  config.names = NameScheme::kHuggingFace;
  config.rope_pairing = RopePairing::kHalves;
  config.quantization.reset();
  return config;
}

// The layers `layer_of` of the model, in this order.
StatusOr<ModelWeights> Load(const ModelFiles& files, const std::vector<uint32_t>& layer_of,
                            ThreadPool& pool) {
  ModelWeights out = {.config = FolderConfig(files.config)};
  out.config.layers = static_cast<uint32_t>(layer_of.size());
  std::vector<uint32_t> ffn_sizes;
  for (const uint32_t layer : layer_of) ffn_sizes.push_back(files.config.FfnSize(layer));
  SetFfnSizes(std::move(ffn_sizes), out.config);
  for (const TensorRequirement& tensor : RequiredTensors(out.config)) {
    const uint32_t layer = IsPerLayer(tensor.kind) ? layer_of[tensor.layer] : 0;
    if (IsVector(tensor.kind)) {
      ASSIGN_OR_RETURN(auto values, LoadVector(files.config, *files.weights, tensor.kind, layer));
      out.tensors.push_back(std::move(values));
    } else {
      ASSIGN_OR_RETURN(FloatMatrix matrix, LoadMatrix(files.config, *files.weights, {tensor.kind}, layer,
                                                      out.config.rope_pairing, pool));
      out.tensors.push_back(std::move(matrix.values));
    }
  }
  return out;
}

// One row of `columns` values in another dtype.
void EncodeRow(DType dtype, std::span<const float> values, std::vector<std::byte>& bytes) {
  bytes.resize(values.size() * Info(dtype).block_bytes);
  EncodeWeights(dtype, values, bytes);
}

}  // namespace

StatusOr<ModelWeights> LoadWeights(const ModelFiles& files, ThreadPool& pool) {
  std::vector<uint32_t> layer_of;
  for (uint32_t layer = 0; layer < files.config.layers; ++layer) layer_of.push_back(layer);
  return Load(files, layer_of, pool);
}

StatusOr<ModelWeights> TakeLayers(const ModelFiles& files, uint32_t layers, ThreadPool& pool) {
  const uint32_t all = files.config.layers;
  if (layers < 1 || layers > all)
    return InvalidArgument("--layers: ", layers, " of a teacher that has ", all);
  std::vector<uint32_t> layer_of;
  for (uint64_t i = 0; i < layers; ++i) {  // rounded to the nearest
    const uint64_t gaps = std::max<uint64_t>(1, layers - 1);
    layer_of.push_back(static_cast<uint32_t>((2 * i * (all - 1) + gaps) / (2 * gaps)));
  }
  return Load(files, layer_of, pool);
}

ModelWeights RandomWeights(ModelConfig config, uint64_t seed) {
  ModelWeights out = {.config = FolderConfig(std::move(config))};
  const auto less = static_cast<float>(1 / std::sqrt(2.0 * out.config.layers));
  for (const TensorRequirement& tensor : RequiredTensors(out.config)) {
    if (IsNorm(tensor.kind)) {
      out.tensors.emplace_back(tensor.shape[0], 1.0f);
      continue;
    }
    const size_t rows = tensor.shape[0], columns = tensor.shape[1];
    std::vector<float>& values = out.tensors.emplace_back(rows * columns);
    const RandomMatrix matrix(seed, tensor.name, columns);
    for (size_t row = 0; row < rows; ++row)
      matrix.FillRow(row, std::span(values).subspan(row * columns, columns));
    if (tensor.kind == TensorKind::kAttentionOutput || tensor.kind == TensorKind::kDown) {
      for (float& value : values) value *= less;
    }
  }
  return out;
}

ModelConfig DraftConfig(const ModelConfig& teacher) {
  ModelConfig draft = FolderConfig(teacher);
  const auto quarter = [](uint32_t of) { return std::max(1u, of / 4); };
  draft.layers = std::max(1u, (teacher.layers + 1) / 2);
  draft.heads = quarter(teacher.heads);
  draft.kv_heads = quarter(teacher.kv_heads);
  while (draft.heads % draft.kv_heads != 0) --draft.kv_heads;
  draft.hidden_size = draft.heads * teacher.head_dim;
  draft.ffn_size = quarter(teacher.ffn_size);
  draft.ffn_sizes.clear();
  draft.tied_embeddings = true;
  return draft;
}

Status RoundWeights(DType dtype, ModelWeights& weights) {
  const std::vector<TensorRequirement> tensors = RequiredTensors(weights.config);
  std::vector<std::byte> bytes;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (IsNorm(tensors[i].kind)) continue;
    const size_t rows = tensors[i].shape[0], columns = tensors[i].shape[1];
    for (size_t row = 0; row < rows; ++row) {
      const auto values = std::span(weights.tensors[i]).subspan(row * columns, columns);
      EncodeRow(dtype, values, bytes);
      DecodeRow({.dtype = dtype, .data = bytes.data(), .rows = 1, .columns = columns}, 0, values.data());
      if (!IsFinite(values))
        return InvalidArgument("tensor \"", tensors[i].name, "\": row ", row, " has a value that ",
                               Info(dtype).name, " cannot hold (--dtype)");
    }
  }
  return Status();
}

StatusOr<Hash128> WriteWeights(const std::string& out, const ModelWeights& weights, const TextAssets& text,
                               DType dtype, const std::string& temporary,
                               const std::function<Status(const Hash128&)>& before_rename) {
  const std::vector<TensorRequirement> tensors = RequiredTensors(weights.config);
  ModelToWrite model = {.config = weights.config, .text = text};
  model.used_tokens = text.tokenizer->vocab_size();
  for (const TensorRequirement& tensor : tensors)
    model.tensors.push_back({tensor.name, IsNorm(tensor.kind) ? DType::kF32 : dtype, tensor.shape});
  ASSIGN_OR_RETURN(const auto writer, ModelWriter::Create(out, model, temporary));
  std::vector<std::byte> bytes;
  for (size_t i = 0; i < tensors.size(); ++i) {
    EncodeRow(model.tensors[i].dtype, weights.tensors[i], bytes);
    RETURN_IF_ERROR(writer->Append(bytes));
  }
  return writer->Finish(before_rename);
}

}  // namespace terrace
