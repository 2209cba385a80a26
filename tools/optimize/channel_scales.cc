#include "tools/optimize/channel_scales.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace terrace {
namespace {

constexpr size_t kSampledRows = 128;  // of each linear, evenly spaced
constexpr int kSteps = 20;            // of AWQ's exponent
constexpr float kLeastScale = 1e-4f, kMostScale = 1e4f;

// The channel of what divides that makes column `column` of the linears of `input`.
size_t ChannelOf(const ModelConfig& config, LinearInput input, size_t column) {
  if (input != LinearInput::kAttentionOutput) return column;
  const size_t head = column / config.head_dim, shared_by = config.heads / config.kv_heads;
  return head / shared_by * config.head_dim + column % config.head_dim;
}

size_t Channels(const ModelConfig& config, LayerInput input, const FloatLayer& layer) {
  if (input.kind == LinearInput::kAttentionOutput) return size_t{config.kv_heads} * config.head_dim;
  return layer.matrix(LinearsOf(input.kind)[0], input.expert).columns;
}

// Brings scales around 1; one of 0 or less (a channel that is always 0) becomes 1.
void Center(std::vector<float>& scales) {
  float least = INFINITY, most = 0;
  for (const float scale : scales) {
    if (!(scale > 0) || !std::isfinite(scale)) continue;
    least = std::min(least, scale);
    most = std::max(most, scale);
  }
  const float middle = most > 0 ? std::sqrt(least) * std::sqrt(most) : 1;
  for (float& scale : scales) {
    const bool is_used = scale > 0 && std::isfinite(scale);
    scale = is_used ? std::clamp(scale / middle, kLeastScale, kMostScale) : 1;
  }
}

FloatMatrix SampledRows(const FloatMatrix& matrix) {
  const size_t count = std::min(kSampledRows, matrix.rows);
  FloatMatrix out = {count, matrix.columns, {}};
  for (size_t i = 0; i < count; ++i) {
    const auto row = matrix.Row(i * matrix.rows / count);
    out.values.insert(out.values.end(), row.begin(), row.end());
  }
  return out;
}

// columns[i] *= factors[i]
void ScaleColumns(std::span<const float> factors, FloatMatrix& matrix) {
  for (size_t row = 0; row < matrix.rows; ++row) {
    const auto values = matrix.Row(row);
    for (size_t i = 0; i < values.size(); ++i) values[i] *= factors[i];
  }
}

std::vector<float> ByColumn(const ModelConfig& config, LinearInput input, std::span<const float> scales,
                            size_t columns) {
  std::vector<float> out(columns);
  for (size_t i = 0; i < columns; ++i) out[i] = scales[ChannelOf(config, input, i)];
  return out;
}

// Rows of a linear, and the squares of their outputs.
struct Sample {
  FloatMatrix rows;
  double size = 0;
};

// What rounding loses of the outputs of `samples` when their columns are scaled before it: of each linear the
// share of its own outputs, so that none counts more because its outputs are large.
double Loss(const std::vector<Sample>& samples, const std::vector<float>& factors, const Hessian& hessian,
            const RowFormat& format, ThreadPool& pool) {
  std::vector<float> inverse(factors.size()), importance(factors.size());
  for (size_t i = 0; i < factors.size(); ++i) {
    inverse[i] = 1 / factors[i];
    importance[i] = static_cast<float>(hessian.Diagonal(i) / (double{factors[i]} * factors[i]));
  }
  double loss = 0;
  for (const Sample& sample : samples) {
    FloatMatrix scaled = sample.rows;
    ScaleColumns(factors, scaled);
    FloatMatrix error = Difference(RoundToNearest(scaled, format, importance, pool).ToFloat(pool), scaled);
    ScaleColumns(inverse, error);
    const double share = RelativeError(OutputSquares(error, hessian, pool), sample.size);
    loss += share * share;
  }
  return loss;
}

}  // namespace

std::vector<float> AwqScales(const ModelConfig& config, const FloatLayer& layer, LayerInput input,
                             const Hessian& hessian, const RowFormat& format, ThreadPool& pool) {
  const size_t channels = Channels(config, input, layer), columns = hessian.inputs();
  std::vector<float> magnitudes(channels);
  for (size_t i = 0; i < columns; ++i)
    magnitudes[ChannelOf(config, input.kind, i)] += static_cast<float>(hessian.MeanMagnitude(i));
  std::vector<Sample> samples;
  for (const TensorKind linear : LinearsOf(input.kind)) {
    FloatMatrix rows = SampledRows(layer.matrix(linear, input.expert));
    const double size = OutputSquares(rows, hessian, pool);
    samples.push_back({.rows = std::move(rows), .size = size});
  }

  std::vector<float> best(channels, 1.0f);  // an exponent of 0
  double least = Loss(samples, ByColumn(config, input.kind, best, columns), hessian, format, pool);
  for (int step = 1; step <= kSteps; ++step) {
    std::vector<float> scales(channels);
    for (size_t i = 0; i < channels; ++i)
      scales[i] = std::pow(magnitudes[i], static_cast<float>(step) / kSteps);
    Center(scales);
    const double loss = Loss(samples, ByColumn(config, input.kind, scales, columns), hessian, format, pool);
    if (!(loss < least)) continue;
    least = loss;
    best = std::move(scales);
  }
  return best;
}

std::vector<float> SmoothScales(const ModelConfig& config, const FloatLayer& layer, LayerInput input,
                                const Hessian& hessian) {
  const size_t channels = Channels(config, input, layer);
  std::vector<float> of_inputs(channels), of_weights(channels);
  const auto raise = [&](std::vector<float>& largest, size_t i, float value) {
    float& of_channel = largest[ChannelOf(config, input.kind, i)];
    of_channel = std::max(of_channel, std::abs(value));
  };
  for (size_t i = 0; i < hessian.inputs(); ++i) raise(of_inputs, i, hessian.LargestMagnitude(i));
  for (const TensorKind linear : LinearsOf(input.kind)) {
    const FloatMatrix& matrix = layer.matrix(linear, input.expert);
    for (size_t row = 0; row < matrix.rows; ++row) {
      for (size_t i = 0; i < matrix.columns; ++i) raise(of_weights, i, matrix.Row(row)[i]);
    }
  }
  std::vector<float> scales(channels);
  for (size_t i = 0; i < channels; ++i) scales[i] = std::sqrt(of_inputs[i] / of_weights[i]);
  Center(scales);
  return scales;
}

void FoldScales(const ModelConfig& config, LayerInput input, std::span<const float> scales,
                FloatLayer& layer) {
  const auto divide_vector = [&](std::vector<float>& values) {
    for (size_t i = 0; i < values.size(); ++i) values[i] /= scales[i];
  };
  const auto divide_rows = [&](FloatMatrix& matrix) {
    for (size_t row = 0; row < matrix.rows; ++row) {
      for (float& value : matrix.Row(row)) value /= scales[row];
    }
  };
  switch (input.kind) {
    case LinearInput::kAttention:
      divide_vector(layer.attention_norm);
      break;
    case LinearInput::kAttentionOutput:
      divide_rows(layer.value);
      if (const auto bias = layer.vectors.find(TensorKind::kValueBias); bias != layer.vectors.end())
        divide_vector(bias->second);
      break;
    case LinearInput::kFfn:
      CHECK(layer.experts.empty(), "the router reads the norm, too");
      divide_vector(layer.ffn_norm);
      break;
    case LinearInput::kDown:
      divide_rows(layer.matrix(TensorKind::kUp, input.expert));
      break;
  }
  for (const TensorKind linear : LinearsOf(input.kind)) {
    FloatMatrix& matrix = layer.matrix(linear, input.expert);
    ScaleColumns(ByColumn(config, input.kind, scales, matrix.columns), matrix);
  }
}

}  // namespace terrace
