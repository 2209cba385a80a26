#include "tools/distill/torch_llama.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>

#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// In RequiredTensors: the embedding, nine tensors a layer, the final norm, and the output where it is not
// tied.
enum PlaceInLayer : size_t {
  kAttentionNorm,
  kQuery,
  kKey,
  kValue,
  kOutput,
  kFfnNorm,
  kGate,
  kUp,
  kDown,
  kCount
};

at::Tensor ParameterOf(const std::vector<float>& values, const Shape& shape) {
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < shape.rank; ++i) sizes.push_back(static_cast<int64_t>(shape[i]));
  at::Tensor out = at::empty(sizes, at::kFloat);
  CHECK(static_cast<size_t>(out.numel()) == values.size());
  std::memcpy(out.data_ptr<float>(), values.data(), values.size() * sizeof(float));
  return out;
}

// Pairs i with i + half; x: [rows, heads, positions, head_dim], cos and sin: [positions, head_dim / 2].
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

// The sum over events of p (ln p - ln q).
at::Tensor Relative(const at::Tensor& log_p, const at::Tensor& log_q) {
  return (log_p.exp() * (log_p - log_q)).sum(at::IntArrayRef(kLastDimension));
}

// The log-probability of all tokens but those named, of which there are some.
at::Tensor LogRest(const at::Tensor& log_q, const at::Tensor& tokens) {
  return at::logsumexp(log_q.scatter(-1, tokens, kMinusInfinity), at::IntArrayRef(kLastDimension));
}

}  // namespace

TorchLlama::TorchLlama(const ModelWeights& weights, bool is_trained) : config_(weights.config) {
  const std::vector<TensorRequirement> tensors = RequiredTensors(config_);
  CHECK(tensors.size() == weights.tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i)
    parameters_.push_back(ParameterOf(weights.tensors[i], tensors[i].shape).set_requires_grad(is_trained));
  CHECK(parameters_.size() == 2 + config_.layers * size_t{kCount} + (config_.tied_embeddings ? 0 : 1));
}

at::Tensor TorchLlama::Norm(const at::Tensor& x, const at::Tensor& weight) const {
  const at::Tensor squares = x.pow(2).mean(at::IntArrayRef(kLastDimension), /*keepdim=*/true);
  return x * at::rsqrt(squares + static_cast<double>(config_.norm_epsilon)) * weight;
}

at::Tensor TorchLlama::Attention(const at::Tensor& x, size_t first, const at::Tensor& cos,
                                 const at::Tensor& sin, const at::Tensor& mask) const {
  const int64_t rows = x.size(0), positions = x.size(1), heads = config_.heads, kv_heads = config_.kv_heads,
                head_dim = config_.head_dim;
  const auto project = [&](PlaceInLayer tensor, int64_t count) {
    return at::linear(x, parameters_[first + tensor])
        .view({rows, positions, count, head_dim})
        .transpose(1, 2);
  };
  // Query heads of one key head follow each other.
  const auto spread = [&](const at::Tensor& of) {
    return of.unsqueeze(2)
        .expand({rows, kv_heads, heads / kv_heads, positions, head_dim})
        .reshape({rows, heads, positions, head_dim});
  };
  const at::Tensor q = Rotate(project(kQuery, heads), cos, sin),
                   k = spread(Rotate(project(kKey, kv_heads), cos, sin)),
                   v = spread(project(kValue, kv_heads));
  const at::Tensor scores =
      at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(head_dim)) + mask;
  const at::Tensor mixed = at::matmul(at::softmax(scores, -1), v);
  return at::linear(mixed.transpose(1, 2).reshape({rows, positions, heads * head_dim}),
                    parameters_[first + kOutput]);
}

TorchLlama::Output TorchLlama::Forward(const at::Tensor& tokens) const {
  const int64_t positions = tokens.size(1), pairs = config_.head_dim / 2;
  const at::Tensor steps = at::pow(static_cast<double>(config_.rope_base),
                                   at::arange(pairs, at::kDouble) * (-1.0 / static_cast<double>(pairs)));
  const at::Tensor angles = at::outer(at::arange(positions, at::kDouble), steps);
  const at::Tensor cos = angles.cos().to(at::kFloat), sin = angles.sin().to(at::kFloat);
  const at::Tensor mask = at::full({positions, positions}, kMinusInfinity, at::kFloat).triu(1);

  at::Tensor x = at::embedding(parameters_[0], tokens);
  for (size_t layer = 0; layer < config_.layers; ++layer) {
    const size_t first = 1 + layer * kCount;
    x = x + Attention(Norm(x, parameters_[first + kAttentionNorm]), first, cos, sin, mask);
    const at::Tensor h = Norm(x, parameters_[first + kFfnNorm]);
    const at::Tensor gated =
        at::silu(at::linear(h, parameters_[first + kGate])) * at::linear(h, parameters_[first + kUp]);
    x = x + at::linear(gated, parameters_[first + kDown]);
  }
  const size_t norm = 1 + config_.layers * size_t{kCount};
  Output out;
  out.hidden = Norm(x, parameters_[norm]);
  out.logits = at::linear(out.hidden, parameters_[config_.tied_embeddings ? 0 : norm + 1]);
  return out;
}

TeacherTargets TargetsOf(const at::Tensor& logits, double temperature, int64_t top_k) {
  TeacherTargets out;
  const at::Tensor log_p = at::log_softmax(logits / temperature, -1);
  if (top_k == 0) {
    out.log_probs = log_p;
    out.best = log_p.argmax(-1);
    return out;
  }
  std::tie(out.log_probs, out.tokens) = at::topk(log_p, top_k, -1);
  out.best = out.tokens.select(-1, 0);
  out.log_rest = top_k == log_p.size(-1) ? at::full_like(out.best, kMinusInfinity, at::kFloat)
                                         : LogRest(log_p, out.tokens);
  return out;
}

at::Tensor KlDivergence(const at::Tensor& log_q, const TeacherTargets& targets, bool is_reverse) {
  const auto divergence = [&](const at::Tensor& log_teacher, const at::Tensor& log_student) {
    return is_reverse ? Relative(log_student, log_teacher) : Relative(log_teacher, log_student);
  };
  if (!targets.tokens.defined()) return divergence(targets.log_probs, log_q);
  const at::Tensor named = log_q.gather(-1, targets.tokens);
  if (targets.tokens.size(-1) == log_q.size(-1)) return divergence(targets.log_probs, named);
  return divergence(at::cat({targets.log_probs, targets.log_rest.unsqueeze(-1)}, -1),
                    at::cat({named, LogRest(log_q, targets.tokens).unsqueeze(-1)}, -1));
}

}  // namespace terrace
