#include "tools/distill/trainer.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <utility>

#include "tools/distill/torch_llama.h"
#include "tools/distill/torch_optim.h"

namespace terrace {
namespace {

using torch::optim::AdamWOptions;
using torch::optim::AdamWParamState;

// OpenBLAS has threads of its own, and sums in an order that depends on how many there are.
void SetThreads(size_t threads) {
  at::set_num_threads(static_cast<int>(threads));
  using Set = void (*)(int);
  if (const auto set = reinterpret_cast<Set>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads")); set != nullptr)
    set(static_cast<int>(threads));
}

// What libtorch throws as a status.
template <typename Body>
auto Guarded(const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const c10::Error& error) {
    return Internal("libtorch: ", error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("libtorch: no memory left");
  }
}

Status NotFinite(const char* what) {
  return WithReason(Internal("the ", what, " is infinite or not a number; a lower --learning-rate may help"),
                    "numeric_error");
}

// Rows side by side, padded behind their ends: [rows, positions].
struct Batch {
  at::Tensor tokens, next;  // int64: what is read, what is predicted
  at::Tensor weights;       // of what is predicted; 0 behind the end
  at::Tensor scored;        // 1 where it is of an answer or of plain text, else 0
};

Batch MakeBatch(std::span<const TrainingRow> rows, const MicroBatch& indices, const RowWeights& weights) {
  size_t positions = 0;
  for (const uint32_t index : indices) positions = std::max(positions, rows[index].positions());
  const int64_t sizes[] = {static_cast<int64_t>(indices.size()), static_cast<int64_t>(positions)};
  Batch out = {at::zeros(sizes, at::kLong), at::zeros(sizes, at::kLong), at::zeros(sizes, at::kFloat),
               at::zeros(sizes, at::kFloat)};
  for (size_t i = 0; i < indices.size(); ++i) {
    const TrainingRow& row = rows[indices[i]];
    for (size_t position = 0, at = i * positions; position < row.positions(); ++position, ++at) {
      out.tokens.data_ptr<int64_t>()[at] = row.tokens[position];
      out.next.data_ptr<int64_t>()[at] = row.tokens[position + 1];
      out.weights.data_ptr<float>()[at] = static_cast<float>(weights.Of(row, position + 1));
      out.scored.data_ptr<float>()[at] = position + 1 >= row.answer ? 1.0f : 0.0f;
    }
  }
  return out;
}

double Number(const at::Tensor& scalar) { return scalar.item().toDouble(); }

void Fill(const at::Tensor& to, const std::vector<float>& from) {
  CHECK(static_cast<size_t>(to.numel()) == from.size(), to.numel(), " values, not ", from.size());
  std::memcpy(to.data_ptr<float>(), from.data(), from.size() * sizeof(float));
}

std::vector<float> Values(const at::Tensor& of) {
  const at::Tensor plain = of.detach().contiguous();
  return {plain.data_ptr<float>(), plain.data_ptr<float>() + plain.numel()};
}

at::Tensor Copy(const std::vector<float>& values, const at::Tensor& like) {
  const at::Tensor out = at::empty(like.sizes(), at::kFloat);
  Fill(out, values);
  return out;
}

// How AdamW names a tensor's state.
std::string KeyOf(const at::Tensor& parameter) {
  return c10::guts::to_string(parameter.unsafeGetTensorImpl());
}

}  // namespace

struct Trainer::Impl {
  Impl(const ModelWeights& weights, const ModelWeights* teacher_weights, const TeacherCache* teacher_cache,
       std::span<const TrainingRow> all_rows, const TrainerOptions& all_options)
      : options(all_options), rows(all_rows), cache(teacher_cache), student(weights, /*is_trained=*/true) {
    CHECK((teacher_weights != nullptr) != (teacher_cache != nullptr));
    if (teacher_weights != nullptr) teacher.emplace(*teacher_weights, /*is_trained=*/false);
    parameters = student.parameters();
    if (options.loss.hidden_weight > 0) {
      CHECK(teacher.has_value());
      projection = at::eye(teacher->config().hidden_size, weights.config.hidden_size, at::kFloat);
      parameters.push_back(projection.set_requires_grad(true));
    }
    std::vector<at::Tensor> matrices, norms;
    for (const at::Tensor& parameter : parameters)
      (parameter.dim() == 1 ? norms : matrices).push_back(parameter);
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(matrices,
                        std::make_unique<AdamWOptions>(AdamWOptions().weight_decay(options.weight_decay)));
    groups.emplace_back(norms, std::make_unique<AdamWOptions>(AdamWOptions().weight_decay(0)));
    optimizer.emplace(std::move(groups));
  }

  // [rows, positions] each.
  struct Positions {
    at::Tensor loss, labels, kl;
    at::Tensor hidden;  // undefined without the hidden option
    at::Tensor best;    // int64: the likeliest token
  };

  StatusOr<TeacherTargets> CachedTargets(const MicroBatch& indices, int64_t positions) const;
  StatusOr<TeacherTargets> Targets(const MicroBatch& indices, const Batch& batch) const;
  // Without `targets` there is neither kl nor hidden.
  Positions Predict(const Batch& batch, const std::optional<TeacherTargets>& targets) const;
  StatusOr<StepLosses> Step(const TrainingStep& step, double learning_rate);
  StatusOr<Measurement> Measure(std::span<const MicroBatch> batches,
                                const std::function<bool()>& is_cancelled) const;
  StatusOr<std::vector<TeacherRow>> Ask(const MicroBatch& indices, uint32_t top_k) const;

  const TrainerOptions options;
  const std::span<const TrainingRow> rows;
  const TeacherCache* const cache;  // null: `teacher` is asked
  const TorchLlama student;
  std::optional<TorchLlama> teacher;
  at::Tensor projection;               // P; undefined without the hidden option
  std::vector<at::Tensor> parameters;  // the student's, then P
  std::optional<torch::optim::AdamW> optimizer;
  uint64_t steps = 0;
};

StatusOr<TeacherTargets> Trainer::Impl::CachedTargets(const MicroBatch& indices, int64_t positions) const {
  TeacherTargets out;
  const auto count = static_cast<int64_t>(indices.size());
  for (size_t i = 0; i < indices.size(); ++i) {
    ASSIGN_OR_RETURN(const TeacherRow row, cache->Row(indices[i]));
    const size_t k = row.tokens.size() / row.log_rest.size(), first = i * static_cast<size_t>(positions);
    if (i == 0) {
      const int64_t of_tokens[] = {count, positions, static_cast<int64_t>(k)};
      out.tokens = at::zeros(of_tokens, at::kLong);
      out.log_probs = at::zeros(of_tokens, at::kFloat);
      out.log_rest = at::zeros({count, positions}, at::kFloat);
    }
    std::ranges::copy(row.tokens, out.tokens.data_ptr<int64_t>() + first * k);
    std::ranges::copy(row.log_probs, out.log_probs.data_ptr<float>() + first * k);
    std::ranges::copy(row.log_rest, out.log_rest.data_ptr<float>() + first);
  }
  out.best = out.tokens.select(-1, 0);
  return out;
}

StatusOr<TeacherTargets> Trainer::Impl::Targets(const MicroBatch& indices, const Batch& batch) const {
  if (cache != nullptr) return CachedTargets(indices, batch.tokens.size(1));
  const at::NoGradGuard no_gradients;
  const TorchLlama::Output said = teacher->Forward(batch.tokens);
  TeacherTargets out = TargetsOf(said.logits, options.loss.temperature, /*top_k=*/0);
  out.hidden = said.hidden;
  return out;
}

Trainer::Impl::Positions Trainer::Impl::Predict(const Batch& batch,
                                                const std::optional<TeacherTargets>& targets) const {
  const LossOptions& loss = options.loss;
  const double temperature = loss.temperature;
  const TorchLlama::Output said = student.Forward(batch.tokens);
  const at::Tensor log_q = at::log_softmax(said.logits, -1);
  Positions out;
  out.best = said.logits.detach().argmax(-1);
  out.labels = -log_q.gather(-1, batch.next.unsqueeze(-1)).squeeze(-1);
  out.loss = out.labels * (1 - loss.kl_weight);
  if (!targets) return out;
  const at::Tensor softened = temperature == 1 ? log_q : at::log_softmax(said.logits / temperature, -1);
  out.kl = KlDivergence(softened, *targets, loss.is_reverse);
  out.loss = out.loss + out.kl * (loss.kl_weight * temperature * temperature);
  if (!projection.defined()) return out;
  const at::Tensor apart = at::linear(said.hidden, projection) - targets->hidden;
  out.hidden = apart.pow(2).mean(at::IntArrayRef(kLastDimension));
  out.loss = out.loss + out.hidden * loss.hidden_weight;
  return out;
}

StatusOr<StepLosses> Trainer::Impl::Step(const TrainingStep& step, double learning_rate) {
  std::vector<Batch> batches;
  double weight = 0;  // of the whole step
  for (const MicroBatch& indices : step.batches) {
    batches.push_back(MakeBatch(rows, indices, options.loss.rows));
    weight += Number(batches.back().weights.sum(at::kDouble));
  }
  for (at::Tensor& parameter : parameters) parameter.mutable_grad() = at::Tensor();

  StepLosses out;
  for (size_t i = 0; i < batches.size(); ++i) {
    const Batch& batch = batches[i];
    std::optional<TeacherTargets> targets;
    if (options.loss.needs_teacher()) {
      ASSIGN_OR_RETURN(targets, Targets(step.batches[i], batch));
    }
    const Positions said = Predict(batch, targets);
    const auto mean = [&](const at::Tensor& of) { return (of * batch.weights).sum() / weight; };
    const at::Tensor loss = mean(said.loss);
    out.loss += Number(loss);
    if (!std::isfinite(out.loss)) return NotFinite("loss");
    out.labels += Number(mean(said.labels));
    if (said.kl.defined()) out.kl += Number(mean(said.kl));
    if (said.hidden.defined()) out.hidden += Number(mean(said.hidden));
    loss.backward();
  }
  const double norm = torch::nn::utils::clip_grad_norm_(parameters, options.clip);
  if (!std::isfinite(norm)) return NotFinite("gradient");
  for (torch::optim::OptimizerParamGroup& group : optimizer->param_groups())
    group.options().set_lr(learning_rate);
  optimizer->step();
  ++steps;
  return out;
}

StatusOr<Measurement> Trainer::Impl::Measure(std::span<const MicroBatch> micro_batches,
                                             const std::function<bool()>& is_cancelled) const {
  const at::NoGradGuard no_gradients;
  Measurement out;
  double weight = 0, scored = 0;
  for (const MicroBatch& indices : micro_batches) {
    if (is_cancelled && is_cancelled()) return Cancelled("interrupted");
    const Batch batch = MakeBatch(rows, indices, options.loss.rows);
    ASSIGN_OR_RETURN(const std::optional<TeacherTargets> targets, Targets(indices, batch));
    const Positions said = Predict(batch, targets);
    const auto sum = [](const at::Tensor& of) { return Number(of.sum(at::kDouble)); };
    weight += sum(batch.weights);
    scored += sum(batch.scored);
    out.loss += sum(said.loss * batch.weights);
    out.labels += sum(said.labels * batch.scored);
    out.kl += sum(said.kl * batch.scored);
    out.agreement += sum(said.best.eq(targets->best) * batch.scored);
  }
  out.positions = static_cast<uint64_t>(scored);
  out.loss /= std::max(weight, std::numeric_limits<double>::min());
  for (double* const mean : {&out.labels, &out.kl, &out.agreement}) *mean /= std::max(scored, 1.0);
  if (!std::isfinite(out.loss + out.labels + out.kl)) return NotFinite("loss of the held-out rows");
  return out;
}

StatusOr<std::vector<TeacherRow>> Trainer::Impl::Ask(const MicroBatch& indices, uint32_t top_k) const {
  CHECK(teacher.has_value());
  const at::NoGradGuard no_gradients;
  const Batch batch = MakeBatch(rows, indices, options.loss.rows);
  const TeacherTargets said =
      TargetsOf(teacher->Forward(batch.tokens).logits, options.loss.temperature, top_k);
  std::vector<TeacherRow> out;
  for (size_t i = 0; i < indices.size(); ++i) {
    const auto positions = static_cast<int64_t>(rows[indices[i]].positions());
    const auto of_row = [&](const at::Tensor& all) {
      return all.select(0, static_cast<int64_t>(i)).narrow(0, 0, positions).contiguous();
    };
    const at::Tensor tokens = of_row(said.tokens);
    TeacherRow& row = out.emplace_back();
    row.tokens.assign(tokens.data_ptr<int64_t>(), tokens.data_ptr<int64_t>() + tokens.numel());
    row.log_probs = Values(of_row(said.log_probs));
    row.log_rest = Values(of_row(said.log_rest));
    if (!std::ranges::all_of(row.log_probs, [](float x) { return std::isfinite(x); }))
      return WithReason(Internal("a log-probability of the teacher is not finite"), "numeric_error");
  }
  return out;
}

StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const ModelWeights& student, const ModelWeights* teacher,
                                                   const TeacherCache* cache,
                                                   std::span<const TrainingRow> rows,
                                                   const TrainerOptions& options) {
  SetThreads(options.threads);
  return Guarded([&]() -> StatusOr<std::unique_ptr<Trainer>> {
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    return std::unique_ptr<Trainer>(
        new Trainer(std::make_unique<Impl>(student, teacher, cache, rows, options)));
  });
}

Trainer::Trainer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Trainer::~Trainer() = default;

StatusOr<StepLosses> Trainer::Step(const TrainingStep& step, double learning_rate) {
  return Guarded([&] { return impl_->Step(step, learning_rate); });
}

StatusOr<Measurement> Trainer::Measure(std::span<const MicroBatch> batches,
                                       const std::function<bool()>& is_cancelled) {
  return Guarded([&] { return impl_->Measure(batches, is_cancelled); });
}

StatusOr<std::vector<TeacherRow>> Trainer::Ask(const MicroBatch& batch, uint32_t top_k) {
  return Guarded([&] { return impl_->Ask(batch, top_k); });
}

TrainerState Trainer::Save() const {
  TrainerState state = {.steps = impl_->steps};
  const auto& known = impl_->optimizer->state();
  for (const at::Tensor& parameter : impl_->parameters) {
    TrainerState::Tensor& tensor = state.tensors.emplace_back();
    tensor.values = Values(parameter);
    const auto found = known.find(KeyOf(parameter));
    if (found == known.end()) continue;
    const auto& moments = static_cast<const AdamWParamState&>(*found->second);
    tensor.mean = Values(moments.exp_avg());
    tensor.square = Values(moments.exp_avg_sq());
  }
  return state;
}

void Trainer::Restore(const TrainerState& state) {
  CHECK(state.tensors.size() == impl_->parameters.size());
  impl_->steps = state.steps;
  auto& known = impl_->optimizer->state();
  for (size_t i = 0; i < state.tensors.size(); ++i) {
    const TrainerState::Tensor& tensor = state.tensors[i];
    const at::Tensor& parameter = impl_->parameters[i];
    Fill(parameter, tensor.values);
    known.erase(KeyOf(parameter));
    if (tensor.mean.empty()) continue;
    auto moments = std::make_unique<AdamWParamState>();
    moments->step(static_cast<int64_t>(state.steps));
    moments->exp_avg(Copy(tensor.mean, parameter));
    moments->exp_avg_sq(Copy(tensor.square, parameter));
    known[KeyOf(parameter)] = std::move(moments);
  }
}

ModelWeights Trainer::weights() const {
  ModelWeights out = {.config = impl_->student.config()};
  for (const at::Tensor& parameter : impl_->student.parameters()) out.tensors.push_back(Values(parameter));
  return out;
}

void Trainer::SetWeights(const ModelWeights& weights) {
  const std::vector<at::Tensor>& parameters = impl_->student.parameters();
  CHECK(weights.tensors.size() == parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i) Fill(parameters[i], weights.tensors[i]);
}

std::string TorchVersion() { return TERRACE_TORCH_PACKAGE; }

}  // namespace terrace
