#include "worker/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/rng.h"

namespace terrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Status CheckLogits(std::span<const float> logits) {
  float largest = -kInfinity;
  for (size_t token = 0; token < logits.size(); ++token) {
    if (!(logits[token] < kInfinity)) {
      return WithReason(Internal("the model gave token ", token, " the logit ", logits[token]),
                        "numeric_error");
    }
    largest = std::max(largest, logits[token]);
  }
  if (largest == -kInfinity) return WithReason(Internal("the model gave no finite logit"), "numeric_error");
  return absl::OkStatus();
}

// -infinity stays; what passes the largest f32 stops there.
float Saturated(double logit) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return logit == -kInfinity ? -kInfinity : static_cast<float>(std::clamp(logit, -kLargest, kLargest));
}

// ln(sum exp(logits)).
double LogSumExp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

// Token ids in falling order of value (ties: lower id first), sorted only as far as they are read: most draws
// end within the first few. Borrows both arguments.
class FallingOrder {
 public:
  FallingOrder(std::span<const float> values, std::vector<int32_t>& ids) : values_(values), ids_(ids) {
    ids_.resize(values.size());
    std::iota(ids_.begin(), ids_.end(), 0);
  }

  int32_t operator[](size_t rank) {
    if (rank >= sorted_) SortBeyond(rank);
    return ids_[rank];
  }

 private:
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

}  // namespace

StatusOr<SampledToken> Sampler::Sample(std::span<const float> logits, const SamplingParams& params,
                                       const TokenCounts& counts, uint64_t index, uint32_t top) {
  RETURN_IF_ERROR(CheckLogits(logits));
  Adjust(logits, params, counts);
  const auto largest = std::max_element(adjusted_.begin(), adjusted_.end());  // the first of equals
  const int32_t token = params.temperature == 0 ? static_cast<int32_t>(largest - adjusted_.begin())
                                                : Draw(params, index, *largest);
  return Describe(logits, token, top);
}

StatusOr<SampledToken> Sampler::Score(std::span<const float> logits, int32_t token, uint32_t top) {
  CHECK(token >= 0 && static_cast<size_t>(token) < logits.size(), "token ", token);
  RETURN_IF_ERROR(CheckLogits(logits));
  return Describe(logits, token, top);
}

void Sampler::Adjust(std::span<const float> logits, const SamplingParams& params, const TokenCounts& counts) {
  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [token, bias] : params.logit_bias) {
    float& logit = adjusted_[static_cast<size_t>(token)];
    logit = Saturated(double{logit} + bias);
  }
  for (const auto& [token, generated] : counts.entries()) {
    float& adjusted = adjusted_[static_cast<size_t>(token)];
    double logit = adjusted;
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (generated > 0) logit -= params.presence_penalty + double{params.frequency_penalty} * generated;
    adjusted = Saturated(logit);
  }
}

int32_t Sampler::Draw(const SamplingParams& params, uint64_t index, float largest) {
  const size_t size = adjusted_.size();
  weights_.resize(size);
  for (size_t i = 0; i < size; ++i) {  // at most exp(0): no temperature overflows
    weights_[i] = std::exp((double{adjusted_[i]} - largest) / params.temperature);
  }
  FallingOrder order(adjusted_, order_);
  const auto weight = [&](size_t rank) { return weights_[static_cast<size_t>(order[rank])]; };

  const size_t limit = params.top_k > 0 ? std::min<size_t>(static_cast<size_t>(params.top_k), size) : size;
  double total = 0;
  if (limit == size) {
    total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  } else {
    for (size_t rank = 0; rank < limit; ++rank) total += weight(rank);
  }
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

SampledToken Sampler::Describe(std::span<const float> logits, int32_t token, uint32_t top) {
  const double normalizer = LogSumExp(logits);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(logits[static_cast<size_t>(id)] - normalizer);
  };
  SampledToken out{.token = token, .logprob = logprob(token), .top = {}};
  if (top == 0) return out;
  FallingOrder order(logits, order_);
  for (size_t rank = 0; rank < std::min<size_t>(top, logits.size()); ++rank) {
    out.top.push_back({.token = order[rank], .logprob = logprob(order[rank])});
  }
  return out;
}

}  // namespace terrace
