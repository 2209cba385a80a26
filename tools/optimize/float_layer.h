// Matrices of a model in f32, and whole layers with all of their experts, to be looked at and changed.
// Values; memory is four bytes a weight.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/weight_matrix.h"
#include "worker/formats/model_config.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/weight_source.h"

namespace terrace {

struct FloatMatrix {
  size_t rows = 0, columns = 0;  // outputs, inputs
  std::vector<float> values;     // [rows, columns]

  std::span<float> Row(size_t row) { return std::span(values).subspan(row * columns, columns); }
  std::span<const float> Row(size_t row) const { return std::span(values).subspan(row * columns, columns); }
  WeightMatrix view() const {
    return {.dtype = DType::kF32,
            .data = reinterpret_cast<const std::byte*>(values.data()),
            .rows = rows,
            .columns = columns};
  }
};

// Whether weights are codes with scales rather than floats.
constexpr bool IsQuantized(DType dtype) { return Info(dtype).block_elements > 1 || dtype == DType::kInt8; }

FloatMatrix ToFloats(const WeightMatrix& matrix, ThreadPool& pool);

bool IsFinite(std::span<const float> values);  // all of them

// What goes into the linears of a layer, in the order in which a token meets them.
enum class LinearInput : uint8_t {
  kAttention,        // query, key, value: the normalized residual stream, [hidden]
  kAttentionOutput,  // what the heads attended to, [heads * head_dim]
  kFfn,              // gate, up: the normalized residual stream, [hidden]
  kDown,             // SiLU(gate) * up, [ffn]
};
inline constexpr LinearInput kLinearInputs[] = {LinearInput::kAttention, LinearInput::kAttentionOutput,
                                                LinearInput::kFfn, LinearInput::kDown};
// The linears that an input goes into.
std::span<const TensorKind> LinearsOf(LinearInput input);
constexpr bool IsPerExpert(LinearInput input) {
  return input == LinearInput::kFfn || input == LinearInput::kDown;
}

// What goes into linears of one layer: with experts each has kFfn and kDown, of the tokens that go to it.
struct LayerInput {
  LinearInput kind;
  uint32_t expert = 0;
};

// The seven linears of a layer, in the order of the tensor map; with experts each has the last three.
inline constexpr TensorKind kLinears[] = {
    TensorKind::kQuery, TensorKind::kKey, TensorKind::kValue, TensorKind::kAttentionOutput,
    TensorKind::kGate,  TensorKind::kUp,  TensorKind::kDown};
inline size_t PlaceOf(TensorKind linear) {  // among them
  return static_cast<size_t>(std::ranges::find(kLinears, linear) - std::begin(kLinears));
}

// The vectors of a layer; norms as they multiply, whatever the file holds.
struct LayerVectors {
  std::vector<float> attention_norm, ffn_norm;       // [hidden]
  std::map<TensorKind, std::vector<float>> vectors;  // the others that the family has

  std::vector<float>& vector(TensorKind kind) {
    if (kind == TensorKind::kAttentionNorm) return attention_norm;
    return kind == TensorKind::kFfnNorm ? ffn_norm : vectors[kind];
  }
};

struct FeedForward {
  FloatMatrix gate, up, down;
};

// With experts these have what is FeedForward, and the layer has the router.
struct FloatLayer : LayerVectors, FeedForward {
  uint32_t number = 0;  // which of the model's layers it is
  FloatMatrix query, key, value, attention_output, router;
  std::vector<FeedForward> experts;

  FloatMatrix& matrix(TensorKind kind, uint32_t expert = 0);
  const FloatMatrix& matrix(TensorKind kind, uint32_t expert = 0) const;
};

// A matrix of `source`, whose shapes were checked against `config` (OpenModel does); queries and keys in the
// order of rows for `pairing`. DATA_LOSS, reason nonfinite, names the tensor and the row.
StatusOr<FloatMatrix> LoadMatrix(const ModelConfig& config, const WeightSource& source,
                                 const LayerTensor& tensor, uint32_t layer, RopePairing pairing,
                                 ThreadPool& pool);

// The vectors of a layer, likewise.
StatusOr<LayerVectors> LoadVectors(const ModelConfig& config, const WeightSource& source, uint32_t layer,
                                   RopePairing pairing);

// All of a layer, likewise.
StatusOr<FloatLayer> LoadLayer(const ModelConfig& config, const WeightSource& source, uint32_t layer,
                               RopePairing pairing, ThreadPool& pool);

// A tensor of one dimension, likewise; a norm as it multiplies.
StatusOr<std::vector<float>> LoadVector(const ModelConfig& config, const WeightSource& source,
                                        TensorKind kind, uint32_t layer = 0);

}  // namespace terrace
