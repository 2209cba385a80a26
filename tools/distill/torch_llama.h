// The Llama family's forward pass in libtorch, in f32, for autograd; and the divergences of distributions
// that a student is trained by. One thread at a time.
#pragma once

#include <vector>

#include "tools/distill/model_weights.h"
#include "tools/distill/torch.h"

namespace terrace {

class TorchLlama {
 public:
  // Copies the weights. `is_trained`: gradients are wanted of them.
  TorchLlama(const ModelWeights& weights, bool is_trained);

  struct Output {
    at::Tensor hidden;  // [rows, positions, hidden]: what goes into the output matrix
    at::Tensor logits;  // [rows, positions, vocab]
  };
  // `tokens`: int64 [rows, positions]. Every row begins at position 0; what stands behind a row's end changes
  // nothing before it.
  Output Forward(const at::Tensor& tokens) const;

  const ModelConfig& config() const { return config_; }
  // In the order of RequiredTensors.
  const std::vector<at::Tensor>& parameters() const { return parameters_; }

 private:
  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const;
  at::Tensor Attention(const at::Tensor& x, size_t first, const at::Tensor& cos, const at::Tensor& sin,
                       const at::Tensor& mask) const;

  const ModelConfig config_;
  std::vector<at::Tensor> parameters_;
};

// What a teacher says of positions [...].
struct TeacherTargets {
  // int64 [..., k], the likeliest first; undefined: log_probs are of all tokens in order, and there is no
  // rest.
  at::Tensor tokens;
  at::Tensor log_probs;  // [..., k or vocab], at the temperature
  at::Tensor log_rest;   // [...], of all other tokens together
  at::Tensor best;       // int64 [...], the likeliest token
  at::Tensor hidden;     // [..., hidden], where it was asked for
};

// Those of logits [..., vocab] at `temperature`: of the `top_k` likeliest tokens; 0: of all.
TeacherTargets TargetsOf(const at::Tensor& logits, double temperature, int64_t top_k);

// KL(teacher || student), or reversed, of each position: [...]. `log_q` are the student's log-probabilities
// [..., vocab] at the temperature of the targets. What the targets do not name is one event.
at::Tensor KlDivergence(const at::Tensor& log_q, const TeacherTargets& targets, bool is_reverse);

}  // namespace terrace
