#include "tools/optimize/synthesize.h"

#include <algorithm>
#include <vector>

#include "base/parallel_for.h"
#include "tools/optimize/quantized_matrix.h"
#include "tools/optimize/random_weights.h"
#include "tools/optimize/rope_rows.h"
#include "tools/optimize/synthetic_text.h"
#include "worker/formats/gguf_config.h"
#include "worker/formats/model_writer.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/weight_encoding.h"

namespace terrace {
namespace {

constexpr uint64_t kChunkBytes = 4 << 20;  // generated, then written

class Synthesis {
 public:
  Synthesis(const ModelToSynthesize& request, const ModelConfig& config, ModelWriter& writer,
            uint64_t total_bytes)
      : request_(request),
        config_(config),
        folder_config_(AsFolderConfig(config)),
        writer_(writer),
        pool_(request.threads),
        total_bytes_(total_bytes) {}

  // Norms multiply by 1, biases add 0.
  Status WriteVector(const TensorRequirement& tensor) {
    if (tensor.kind == TensorKind::kRopeDivisors)
      return Write(std::as_bytes(std::span(config_.rope_scaling.divisors)));
    const bool is_one = IsNorm(tensor.kind) && !config_.norms_less_one;
    const std::vector<float> values(tensor.shape[0], is_one ? 1.0f : 0.0f);
    return Write(std::as_bytes(std::span(values)));
  }

  Status WriteMatrix(const TensorRequirement& tensor) {
    const uint64_t rows = tensor.shape[0], columns = tensor.shape[1];
    const DType dtype = SynthesizedDType(request_, tensor);
    const uint64_t row_bytes = columns / Info(dtype).block_elements * Info(dtype).block_bytes;
    const uint64_t chunk_rows = std::max<uint64_t>(1, kChunkBytes / row_bytes);
    const bool is_rotated = tensor.kind == TensorKind::kQuery || tensor.kind == TensorKind::kKey;
    // Named as in a folder, whatever is written, so that both formats have the same values.
    const RandomMatrix matrix(request_.seed,
                              TensorName(folder_config_, tensor.kind, tensor.layer, tensor.expert), columns);
    for (uint64_t first = 0; first < rows; first += chunk_rows) {
      const uint64_t count = std::min(chunk_rows, rows - first);
      bytes_.resize(count * row_bytes);
      pool_.ParallelFor(count, /*grain=*/1, [&](size_t begin, size_t end) {
        std::vector<float> values(columns);
        for (size_t i = begin; i < end; ++i) {
          const uint64_t row = first + i;
          matrix.FillRow(
              is_rotated ? RopeRow(RopePairing::kHalves, config_.rope_pairing, row, config_.head_dim) : row,
              values);
          EncodeWeights(dtype, values, std::span(bytes_).subspan(i * row_bytes, row_bytes));
        }
      });
      RETURN_IF_ERROR(Write(bytes_));
    }
    return Status();
  }

 private:
  Status Write(std::span<const std::byte> bytes) {
    RETURN_IF_ERROR(writer_.Append(bytes));
    done_bytes_ += bytes.size();
    return request_.on_progress(done_bytes_, total_bytes_);
  }

  const ModelToSynthesize& request_;
  const ModelConfig& config_;
  const ModelConfig folder_config_;
  ModelWriter& writer_;
  ThreadPool pool_;
  std::vector<std::byte> bytes_;  // of one chunk
  const uint64_t total_bytes_;
  uint64_t done_bytes_ = 0;
};

// Whether llama.cpp's "_M" mixtures give more bits to a layer: the first and last eighth, and every third.
bool HasMoreBits(uint32_t layer, uint32_t layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

}  // namespace

DType SynthesizedDType(const ModelToSynthesize& request, const TensorRequirement& tensor) {
  if (tensor.kind == TensorKind::kRouter) return DType::kF32;
  const bool is_output = tensor.kind == TensorKind::kOutput ||
                         (tensor.kind == TensorKind::kEmbedding && request.config.tied_embeddings);
  const bool is_sensitive = tensor.kind == TensorKind::kValue || tensor.kind == TensorKind::kDown;
  DType dtype = request.dtype;
  if (request.more_bits &&
      (is_output || (is_sensitive && HasMoreBits(tensor.layer, request.config.layers)))) {
    dtype = DType::kQ6_K;
  }
  return WithWholeBlocks(dtype, tensor.shape[1]);
}

StatusOr<SynthesizedModel> Synthesize(const ModelToSynthesize& request) {
  const bool is_gguf = request.format == ModelFormat::kGguf;
  ModelToWrite model = {.config = request.config, .text = {}};
  model.config.name.clear();  // a model is named after its path
  model.config.warnings.clear();
  model.config.quantization.reset();
  model.config = AsFolderConfig(model.config);
  if (is_gguf) {
    ASSIGN_OR_RETURN(model.config, AsGgufConfig(model.config));
  }
  model.used_tokens = request.text.tokenizer->vocab_size();
  ASSIGN_OR_RETURN(model.text, PadVocabulary(request.text, model.config.vocab_size));

  SynthesizedModel result;
  const std::vector<TensorRequirement> tensors = RequiredTensors(model.config);
  for (const TensorRequirement& tensor : tensors) {
    const DType dtype = IsVector(tensor.kind) ? DType::kF32 : SynthesizedDType(request, tensor);
    const auto bytes = ByteCount(dtype, tensor.shape);
    if (!bytes.ok()) return Annotate(bytes.status(), Concat("tensor \"", tensor.name, "\""));
    result.weight_bytes += *bytes;
    result.parameters += *ElementCount(tensor.shape);
    model.tensors.push_back({tensor.name, dtype, tensor.shape});
  }

  ASSIGN_OR_RETURN(const std::unique_ptr<ModelWriter> writer, ModelWriter::Create(request.path, model));
  Synthesis synthesis(request, model.config, *writer, result.weight_bytes);
  for (const TensorRequirement& tensor : tensors)
    RETURN_IF_ERROR(IsVector(tensor.kind) ? synthesis.WriteVector(tensor) : synthesis.WriteMatrix(tensor));
  ASSIGN_OR_RETURN(result.digest, writer->Finish());
  return result;
}

}  // namespace terrace
