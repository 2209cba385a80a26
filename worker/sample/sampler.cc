#include "worker/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/rng.h"

namespace terrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Which logit makes a row one that nothing can be chosen from.
Status NumericError(std::span<const float> logits) {
  for (size_t token = 0; token < logits.size(); ++token) {
    if (!(logits[token] < kInfinity)) {
      return WithReason(Internal("the model gave token ", token, " the logit ", logits[token]),
                        "numeric_error");
    }
  }
  return WithReason(Internal("the model gave no finite logit"), "numeric_error");
}

// -infinity stays; what passes the largest f32 stops there.
float Saturated(double logit) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return logit == -kInfinity ? -kInfinity : static_cast<float>(std::clamp(logit, -kLargest, kLargest));
}

// Token ids in falling order of value (ties: lower id first), sorted only as far as they are read: most draws
// end within the first few. Until more are read only those of at least `least` are looked at. Borrows the
// first two arguments.
class FallingOrder {
 public:
  FallingOrder(std::span<const float> values, std::vector<int32_t>& ids, float least)
      : values_(values), ids_(ids) {
    ids_.clear();
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i] >= least) ids_.push_back(static_cast<int32_t>(i));
    }
  }

  int32_t operator[](size_t rank) {
    if (rank >= ids_.size()) TakeAll();
    if (rank >= sorted_) SortBeyond(rank);
    return ids_[rank];
  }

 private:
  void TakeAll() {
    ids_.resize(values_.size());
    std::iota(ids_.begin(), ids_.end(), 0);
    sorted_ = 0;
  }

  void SortBeyond(size_t rank) {
    const size_t end = std::min(ids_.size(), 4 * rank + 32);
    const auto first = ids_.begin() + static_cast<ptrdiff_t>(sorted_),
               last = ids_.begin() + static_cast<ptrdiff_t>(end);
    const auto precedes = [this](int32_t a, int32_t b) {
      const float value_a = values_[static_cast<size_t>(a)], value_b = values_[static_cast<size_t>(b)];
      return value_a != value_b ? value_a > value_b : a < b;
    };
    if (last != ids_.end()) std::nth_element(first, last, ids_.end(), precedes);
    std::sort(first, last, precedes);
    sorted_ = end;
  }

  const std::span<const float> values_;
  std::vector<int32_t>& ids_;
  size_t sorted_ = 0;
};

// How far below the largest logit, in units of the temperature, most draws end: e^-10 is 1 in 22,000.
constexpr float kLikelyRange = 10;

int32_t FirstLargest(std::span<const float> values) {
  return static_cast<int32_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

}  // namespace

StatusOr<SampledToken> Sampler::Sample(std::span<const float> logits, const SamplingParams& params,
                                       const TokenCounts& counts, uint64_t index, const TokenReport& report) {
  ASSIGN_OR_RETURN(const RowSummary row, Summarize(logits, report.signals));
  const std::span<const float> adjusted = Adjust(logits, params, counts);
  const int32_t token = params.temperature == 0 ? FirstLargest(adjusted) : Draw(adjusted, params, index);
  return Describe(logits, row, token, report.top);
}

StatusOr<SampledToken> Sampler::Score(std::span<const float> logits, int32_t token,
                                      const TokenReport& report) {
  CHECK(token >= 0 && static_cast<size_t>(token) < logits.size(), "token ", token);
  ASSIGN_OR_RETURN(const RowSummary row, Summarize(logits, report.signals));
  return Describe(logits, row, token, report.top);
}

// With w_i = exp(logit_i - largest) and W their sum, the entropy is ln W - sum_i w_i (logit_i - largest) / W:
// one more look at the row, in order, in double. A logit of -infinity weighs nothing.
StatusOr<Sampler::RowSummary> Sampler::Summarize(std::span<const float> logits, bool signals) {
  if (signals) weights_.resize(logits.size());
  const SoftmaxSums sums = ops_->softmax_weights(
      {.logits = logits.data(), .weights = signals ? weights_.data() : nullptr, .count = logits.size()});
  if (std::isnan(sums.sum)) return NumericError(logits);
  RowSummary row{.log_sum = sums.largest + std::log(sums.sum)};
  if (!signals) return row;
  float first = -kInfinity, second = -kInfinity;
  double weighted = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i];
    second = std::max(second, std::min(first, logit));
    first = std::max(first, logit);
    if (weights_[i] > 0) weighted += double{weights_[i]} * (double{logit} - sums.largest);
  }
  row.margin = first - second;
  row.entropy = static_cast<float>(std::log(sums.sum) - weighted / sums.sum);
  return row;
}

// `logits` themselves when nothing changes them.
std::span<const float> Sampler::Adjust(std::span<const float> logits, const SamplingParams& params,
                                       const TokenCounts& counts) {
  const bool has_penalties = HasPenalties(params);
  if (params.logit_bias.empty() && !has_penalties) return logits;
  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [token, bias] : params.logit_bias) {
    float& logit = adjusted_[static_cast<size_t>(token)];
    logit = Saturated(double{logit} + bias);
  }
  if (!has_penalties) return adjusted_;
  for (const auto& [token, generated] : counts.entries()) {
    float& adjusted = adjusted_[static_cast<size_t>(token)];
    double logit = adjusted;
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (generated > 0) logit -= params.presence_penalty + double{params.frequency_penalty} * generated;
    adjusted = Saturated(logit);
  }
  return adjusted_;
}

int32_t Sampler::Draw(std::span<const float> logits, const SamplingParams& params, uint64_t index) {
  const size_t size = logits.size();
  weights_.resize(size);
  const SoftmaxSums sums = ops_->softmax_weights({.logits = logits.data(),
                                                  .weights = weights_.data(),
                                                  .count = size,
                                                  .temperature = params.temperature});
  FallingOrder order(logits, order_, sums.largest - kLikelyRange * params.temperature);
  const auto weight = [&](size_t rank) { return double{weights_[static_cast<size_t>(order[rank])]}; };

  const size_t limit = params.top_k > 0 ? std::min<size_t>(static_cast<size_t>(params.top_k), size) : size;
  double total = limit == size ? sums.sum : 0;
  for (size_t rank = 0; limit < size && rank < limit; ++rank) total += weight(rank);
  size_t kept = limit;
  double kept_weight = total;
  if (params.top_p < 1 || params.min_p > 0) {
    const double enough = params.top_p < 1 ? params.top_p * total : kInfinity;
    kept = 1;
    kept_weight = weight(0);
    while (kept < limit && kept_weight < enough && weight(kept) >= params.min_p)
      kept_weight += weight(kept++);
  }

  const double target = RandomUniform(params.seed, index) * kept_weight;
  double passed = weight(0);
  size_t rank = 0;
  // Rounding can leave the last sum below the target: the last token of any weight is then the one.
  while (passed <= target && rank + 1 < kept && weight(rank + 1) > 0) passed += weight(++rank);
  return order[rank];
}

SampledToken Sampler::Describe(std::span<const float> logits, const RowSummary& row, int32_t token,
                               uint32_t top) {
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(logits[static_cast<size_t>(id)] - row.log_sum);
  };
  SampledToken out{
      .token = token, .logprob = logprob(token), .top = {}, .margin = row.margin, .entropy = row.entropy};
  if (top == 0) return out;
  FallingOrder order(logits, order_, static_cast<float>(row.log_sum) - kLikelyRange);
  for (size_t rank = 0; rank < std::min<size_t>(top, logits.size()); ++rank) {
    out.top.push_back({.token = order[rank], .logprob = logprob(order[rank])});
  }
  return out;
}

}  // namespace terrace
