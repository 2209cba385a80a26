#include "router/tier/gate.h"

#include <algorithm>
#include <cmath>

namespace terrace {

std::array<double, GateScorer::kSignals> GateScorer::ValuesOf(const AnswerSignals& signals) {
  return {signals.mean_logprob,       signals.min_logprob,  signals.first_logprob,
          std::log1p(signals.tokens), signals.mean_margin,  signals.min_margin,
          signals.first_margin,       signals.mean_entropy, signals.first_entropy};
}

double GateScorer::Probability(const AnswerSignals& signals) const {
  const std::array<double, kSignals> values = ValuesOf(signals);
  double logit = bias;
  for (size_t i = 0; i < kSignals; ++i) {
    if (weights[i] != 0) logit += weights[i] * values[i];  // a margin without a second token is infinite
  }
  return 1 / (1 + std::exp(-logit));
}

Gate Gate::Closed() {
  Gate gate;
  gate.is_closed_ = true;
  return gate;
}

bool Gate::Accepts(const AnswerSignals& signals) const {
  if (is_closed_) return false;
  return !threshold_.has_value() || (signals.tokens > 0 && Measure(signals) > *threshold_);
}

std::optional<double> Gate::Score(const AnswerSignals& signals) const {
  if (!threshold_.has_value() || signals.tokens == 0) return std::nullopt;
  return Measure(signals);
}

Verdict Gate::JudgeEarly(const AnswerSignals& so_far, Duration held) const {
  const bool is_due = (hold_.tokens.has_value() && so_far.tokens >= *hold_.tokens) ||
                      (hold_.time.has_value() && held >= *hold_.time);
  if (!is_due || so_far.tokens == 0) return Verdict::kUndecided;
  const double measure = Measure(so_far);
  if (hold_.is_final)
    return measure > *threshold_ ? Verdict::kAccepted : Verdict::kRejected;  // NaN: rejected
  if (hold_.accept_above.has_value() && measure > *hold_.accept_above) return Verdict::kAccepted;
  if (hold_.reject_below.has_value() && measure < *hold_.reject_below) return Verdict::kRejected;
  return Verdict::kUndecided;
}

bool Gate::needs_signals() const {
  if (!scorer_.has_value()) return false;
  const auto& weights = scorer_->weights;
  return std::any_of(weights.begin() + GateScorer::kOfLogprobs, weights.end(),
                     [](double weight) { return weight != 0; });
}

}  // namespace terrace
