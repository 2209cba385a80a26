#include "kernels/moe/route_experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "base/parallel_for.h"

namespace terrace {
namespace {

// The first of all experts behind `last`, which may be none, in the order in which they are chosen.
size_t NextExpert(const float* logits, size_t experts, size_t last) {
  size_t best = experts;
  for (size_t i = 0; i < experts; ++i) {
    const bool was_taken =
        last < experts && (logits[i] > logits[last] || (logits[i] == logits[last] && i <= last));
    if (!was_taken && (best == experts || logits[i] > logits[best])) best = i;
  }
  return best;
}

void Choose(const RouteExpertsArgs& a, size_t token) {
  size_t expert = a.experts;
  for (size_t slot = 0; slot < a.per_token; ++slot) {
    expert = NextExpert(a.Token(token), a.experts, expert);
    a.chosen[token * a.per_token + slot] = static_cast<uint32_t>(expert);
  }
}

void ChooseNone(const RouteExpertsArgs& a, size_t token) {
  uint32_t* chosen = a.chosen + token * a.per_token;
  std::iota(chosen, chosen + a.per_token, 0u);
  std::fill_n(a.weights + token * a.per_token, a.per_token, std::numeric_limits<float>::quiet_NaN());
}

// weigh(expert) is proportional to its share; `sum` is that of all experts.
template <typename Weigh>
void Route(const RouteExpertsArgs& a, size_t token, double sum, const Weigh& weigh) {
  if (std::isnan(sum)) return ChooseNone(a, token);
  Choose(a, token);
  const std::span<const uint32_t> chosen(a.chosen + token * a.per_token, a.per_token);
  if (a.normalizes) {
    sum = 0;
    for (const uint32_t expert : chosen) sum += weigh(expert);
  }
  for (size_t slot = 0; slot < a.per_token; ++slot)
    a.weights[token * a.per_token + slot] = static_cast<float>(weigh(chosen[slot]) / sum);
}

}  // namespace

void RouteExpertsRef(const RouteExpertsArgs& a, ThreadPool&) {
  for (size_t token = 0; token < a.tokens; ++token) {
    const float* logits = a.Token(token);
    const double largest = *std::max_element(logits, logits + a.experts);
    const auto weigh = [&](size_t expert) { return std::exp(double{logits[expert]} - largest); };
    double sum = 0;
    for (size_t i = 0; i < a.experts; ++i) sum += weigh(i);
    Route(a, token, sum, weigh);
  }
}

void RouteTokens(const RouteExpertsArgs& a, SoftmaxSums (*softmax_weights)(const SoftmaxWeightsArgs&),
                 size_t begin, size_t end) {
  std::vector<float> all(a.experts);
  for (size_t token = begin; token < end; ++token) {
    const double sum =
        softmax_weights({.logits = a.Token(token), .weights = all.data(), .count = a.experts}).sum;
    Route(a, token, sum, [&](size_t expert) { return double{all[expert]}; });
  }
}

}  // namespace terrace
