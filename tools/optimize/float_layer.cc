#include "tools/optimize/float_layer.h"

#include <algorithm>
#include <cmath>

#include "kernels/quant/weight_values.h"
#include "tools/optimize/rope_rows.h"
#include "worker/tensor/held_rows.h"
#include "worker/tensor/tensor.h"

namespace terrace {
namespace {

Status NotFinite(const WeightSource& source, const std::string& name, size_t row) {
  return WithReason(DataLoss(source.path(), ": tensor \"", name, "\": row ", row,
                             " has a value that is infinite or not a number"),
                    "nonfinite");
}

}  // namespace

FloatMatrix ToFloats(const WeightMatrix& matrix, ThreadPool& pool) {
  FloatMatrix out = {matrix.rows, matrix.columns, std::vector<float>(matrix.rows * matrix.columns)};
  pool.ParallelFor(matrix.rows, /*grain=*/16, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) DecodeRow(matrix, row, out.Row(row).data());
  });
  return out;
}

bool IsFinite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float x) { return std::isfinite(x); });
}

std::span<const TensorKind> LinearsOf(LinearInput input) {
  switch (input) {
    case LinearInput::kAttention:
      return std::span(kLinears).subspan(0, 3);
    case LinearInput::kAttentionOutput:
      return std::span(kLinears).subspan(3, 1);
    case LinearInput::kFfn:
      return std::span(kLinears).subspan(4, 2);
    case LinearInput::kDown:
      return std::span(kLinears).subspan(6, 1);
  }
  return {};
}

FloatMatrix& FloatLayer::matrix(TensorKind kind, uint32_t expert) {
  FeedForward& ffn = experts.empty() ? *this : experts[expert];
  switch (kind) {
    case TensorKind::kQuery:
      return query;
    case TensorKind::kKey:
      return key;
    case TensorKind::kValue:
      return value;
    case TensorKind::kAttentionOutput:
      return attention_output;
    case TensorKind::kRouter:
      return router;
    case TensorKind::kGate:
      return ffn.gate;
    case TensorKind::kUp:
      return ffn.up;
    case TensorKind::kDown:
      return ffn.down;
    default:
      CHECK(false, "no matrix");
  }
  return query;
}

const FloatMatrix& FloatLayer::matrix(TensorKind kind, uint32_t expert) const {
  return const_cast<FloatLayer*>(this)->matrix(kind, expert);
}

StatusOr<std::vector<float>> LoadVector(const ModelConfig& config, const WeightSource& source,
                                        TensorKind kind, uint32_t layer) {
  const std::string name = TensorName(config, kind, layer);
  ASSIGN_OR_RETURN(const TensorView tensor, source.Find(name));
  const WeightMatrix row = {
      .dtype = tensor.dtype, .data = tensor.data, .rows = 1, .columns = tensor.shape[0]};
  std::vector<float> values(row.columns);
  DecodeRow(row, 0, values.data());
  if (!IsFinite(values)) return NotFinite(source, name, 0);
  if (config.norms_less_one && IsNorm(kind)) {
    for (float& value : values) value += 1;
  }
  return values;
}

StatusOr<FloatMatrix> LoadMatrix(const ModelConfig& config, const WeightSource& source,
                                 const LayerTensor& tensor, uint32_t layer, RopePairing pairing,
                                 ThreadPool& pool) {
  const std::string name = TensorName(config, tensor.kind, layer, tensor.expert);
  ASSIGN_OR_RETURN(const TensorView view, source.Find(name));
  ASSIGN_OR_RETURN(const HeldRows held, HeldRows::Hold(view, pool));
  const WeightMatrix& from = held.matrix();
  const bool is_rotated = tensor.kind == TensorKind::kQuery || tensor.kind == TensorKind::kKey;
  FloatMatrix matrix = {from.rows, from.columns, std::vector<float>(from.rows * from.columns)};
  pool.ParallelFor(matrix.rows, /*grain=*/16, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      const size_t of = is_rotated ? RopeRow(config.rope_pairing, pairing, row, config.head_dim) : row;
      DecodeRow(from, of, matrix.Row(row).data());
    }
  });
  for (size_t row = 0; row < matrix.rows; ++row) {
    if (!IsFinite(matrix.Row(row))) return NotFinite(source, name, row);
  }
  return matrix;
}

StatusOr<LayerVectors> LoadVectors(const ModelConfig& config, const WeightSource& source, uint32_t layer,
                                   RopePairing pairing) {
  LayerVectors out;
  for (const auto& [kind, expert] : LayerTensors(config)) {
    if (!IsVector(kind)) continue;
    ASSIGN_OR_RETURN(out.vector(kind), LoadVector(config, source, kind, layer));
  }
  // Those of heads would have to be turned with their matrices; no family has them and other pairings.
  CHECK(out.vectors.empty() || config.rope_pairing == pairing, "vectors of another pairing");
  return out;
}

StatusOr<FloatLayer> LoadLayer(const ModelConfig& config, const WeightSource& source, uint32_t layer,
                               RopePairing pairing, ThreadPool& pool) {
  FloatLayer out;
  out.experts.resize(config.experts);
  out.number = layer;
  ASSIGN_OR_RETURN(static_cast<LayerVectors&>(out), LoadVectors(config, source, layer, pairing));
  for (const LayerTensor& tensor : LayerTensors(config)) {
    if (IsVector(tensor.kind)) continue;
    ASSIGN_OR_RETURN(out.matrix(tensor.kind, tensor.expert),
                     LoadMatrix(config, source, tensor, layer, pairing, pool));
  }
  return out;
}

}  // namespace terrace
