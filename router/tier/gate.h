// Whether a tier's answer is good enough to be given. A value; pure.
#pragma once

#include <cstdint>
#include <optional>

namespace terrace {

struct AnswerSignals {
  uint32_t tokens = 0;      // end token included
  double mean_logprob = 0;  // of those, nats
};

class Gate {
 public:
  Gate() = default;  // accepts everything: the last tier's
  explicit Gate(double min_mean_logprob) : threshold_(min_mean_logprob) {}

  // An answer without tokens says nothing about confidence and is not accepted by a threshold.
  bool Accepts(const AnswerSignals& signals) const {
    return !threshold_.has_value() || (signals.tokens > 0 && signals.mean_logprob > *threshold_);
  }
  const std::optional<double>& threshold() const { return threshold_; }

 private:
  std::optional<double> threshold_;
};

}  // namespace terrace
