// What a step of an engine takes, by what it computes: learned from steps that were measured, told for steps
// that were not. A value; pure.
//
//   seconds = curve(tokens) + decode * decode_context + prefill * prefill_context
//
// The curve is the roofline, with the overhead of a step in it, as this machine has it: flat while a step is
// bound by reading the weights (bytes / bandwidth), rising with the tokens where it is bound by arithmetic
// (operations / rate). It is linear between the measured numbers of tokens, and goes on behind the last with
// the slope of the last piece. The other two are what attention adds for each position that a token looks at.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>

#include "base/status.h"

namespace terrace {

struct StepWork {
  uint32_t prefill_tokens = 0, decode_tokens = 0;
  // Positions before each token, summed up over the tokens of a kind.
  double prefill_context = 0, decode_context = 0;

  uint32_t tokens() const { return prefill_tokens + decode_tokens; }
};

struct StepSample {
  StepWork work = {};
  double seconds = 0;
};

class StepCost {
 public:
  // Medians of samples with as many tokens and short contexts make the curve; what those of long ones take
  // more, by least squares, the price of a context; neither is below 0, and the curve never falls. A kind of
  // context that no sample has costs nothing. INVALID_ARGUMENT where no sample has a short context, or one
  // has no tokens or no time.
  static StatusOr<StepCost> Fit(std::span<const StepSample> samples);

  double Seconds(const StepWork& work) const;  // 0 of no tokens

  // What it is where the curve takes `factor`, above 0, times as long and `more(tokens)` seconds, not below
  // 0, besides. Contexts cost the same. The curve never falls.
  StepCost Changed(double factor, const std::function<double(uint32_t tokens)>& more) const;

  const std::map<uint32_t, double>& curve() const { return curve_; }  // seconds by tokens
  double seconds_per_decode_context() const { return decode_context_; }
  double seconds_per_prefill_context() const { return prefill_context_; }

 private:
  StepCost() = default;
  double Curve(uint32_t tokens) const;
  double OfContexts(const StepWork& work) const {
    return prefill_context_ * work.prefill_context + decode_context_ * work.decode_context;
  }

  std::map<uint32_t, double> curve_;  // of one number of tokens at least
  double prefill_context_ = 0, decode_context_ = 0;
};

}  // namespace terrace
