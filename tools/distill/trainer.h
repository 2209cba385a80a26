// A student that is trained towards a teacher's distributions and towards the tokens of a text, over
// libtorch's autograd and AdamW, on CPUs in f32. The loss of a predicted token is
//
//   kl_weight * T^2 * KL + (1 - kl_weight) * -ln q(token) + hidden_weight * |P h - h'|^2 / width
//
// with KL between the two distributions at temperature T (Hinton et al., "Distilling the Knowledge in a
// Neural Network", 2015), h and h' what goes into the output matrices of student and teacher, and P a matrix
// that is learned with the student and then thrown away. A step's loss is the mean over its tokens by their
// weights.
//
// Used by one thread, which libtorch's own help. The same input, number of threads and kind of processor give
// the same bits. What libtorch throws becomes INTERNAL.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/distill/model_weights.h"
#include "tools/distill/teacher_cache.h"
#include "tools/distill/training_plan.h"
#include "tools/distill/training_rows.h"

namespace terrace {

struct LossOptions {
  double kl_weight = 0.7;   // 0 to 1; 0: the teacher is only measured against
  bool is_reverse = false;  // KL(student || teacher) instead of KL(teacher || student)
  double temperature = 1;   // above 0
  double hidden_weight = 0;
  RowWeights rows = {};

  bool needs_teacher() const { return kl_weight > 0 || hidden_weight > 0; }
};

struct TrainerOptions {
  LossOptions loss = {};
  double weight_decay = 0.01;  // of matrices
  double clip = 1;             // the largest norm of the gradient of a step
  size_t threads = 1;
};

// Means of a step by the weights of its tokens.
struct StepLosses {
  double loss = 0, kl = 0, labels = 0, hidden = 0;  // kl without T^2, hidden without its weight
};

// Over held-out tokens of answers and plain texts, each counted alike; `loss` is as of a step, over all
// tokens.
struct Measurement {
  uint64_t positions = 0;
  double loss = 0;
  double labels = 0;     // nats a token
  double kl = 0;         // at the temperature, without T^2
  double agreement = 0;  // share of positions where student and teacher have the same likeliest token
};

// All that changes while it trains; the values of tensors as of the model's, P last where there is one.
struct TrainerState {
  uint64_t steps = 0;  // that were done
  struct Tensor {
    std::vector<float> values, mean, square;  // and AdamW's moments; empty before the first step
  };
  std::vector<Tensor> tensors = {};
};

class Trainer {
 public:
  // Either `teacher`, which is copied, or `cache` says what the teacher does (CHECK); the hidden option needs
  // `teacher` (CHECK). `rows` and `cache` outlive this object.
  static StatusOr<std::unique_ptr<Trainer>> Create(const ModelWeights& student, const ModelWeights* teacher,
                                                   const TeacherCache* cache,
                                                   std::span<const TrainingRow> rows,
                                                   const TrainerOptions& options);
  ~Trainer();

  // INTERNAL, reason numeric_error, when loss or gradient is not finite; the weights are as before then.
  StatusOr<StepLosses> Step(const TrainingStep& step, double learning_rate);
  StatusOr<Measurement> Measure(std::span<const MicroBatch> batches,
                                const std::function<bool()>& is_cancelled = nullptr);
  // What the teacher, which is no cache, says of the rows of a batch, in their order.
  StatusOr<std::vector<TeacherRow>> Ask(const MicroBatch& batch, uint32_t top_k);

  TrainerState Save() const;
  void Restore(const TrainerState& state);  // of a trainer of the same shapes (CHECK)
  ModelWeights weights() const;
  void SetWeights(const ModelWeights& weights);  // of the same shapes (CHECK)

 private:
  struct Impl;
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The version of libtorch that this was built with, "1.13.1+dfsg-4".
std::string TorchVersion();

}  // namespace terrace
