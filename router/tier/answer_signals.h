// How sure a model was of its answer: what gates look at. Values; pure.
#pragma once

#include <algorithm>
#include <cstdint>

namespace terrace {

struct AnswerSignals {
  uint32_t tokens = 0;  // end token included
  // Of those, of the model's own distribution, nats. Margins and entropies are 0 unless a worker was asked
  // for them (Gate::needs_signals).
  double mean_logprob = 0, min_logprob = 0;
  double mean_margin = 0, min_margin = 0;  // the likeliest token's log-probability less the second's
  double mean_entropy = 0;
  double first_logprob = 0, first_margin = 0, first_entropy = 0;  // known when the prompt has been read
};

// Sums them up, token by token. One thread at a time.
class SignalMeter {
 public:
  void Add(double logprob, double margin, double entropy) {
    if (seen_.tokens++ == 0) {
      seen_.min_logprob = seen_.first_logprob = logprob;
      seen_.min_margin = seen_.first_margin = margin;
      seen_.first_entropy = entropy;
    }
    seen_.min_logprob = std::min(seen_.min_logprob, logprob);
    seen_.min_margin = std::min(seen_.min_margin, margin);
    sum_logprob_ += logprob;
    sum_margin_ += margin;
    sum_entropy_ += entropy;
  }
  AnswerSignals signals() const {
    AnswerSignals out = seen_;
    if (out.tokens == 0) return out;
    out.mean_logprob = sum_logprob_ / out.tokens;
    out.mean_margin = sum_margin_ / out.tokens;
    out.mean_entropy = sum_entropy_ / out.tokens;
    return out;
  }

 private:
  AnswerSignals seen_;  // but for the means
  double sum_logprob_ = 0, sum_margin_ = 0, sum_entropy_ = 0;
};

}  // namespace terrace
