// What passes of a drafter's model take, by their tokens: learned from its calls, each measured whole. Owned
// by ModelAsking; one thread.
#pragma once

#include <cstdint>
#include <span>

#include "worker/speculative/cost_curve.h"

namespace terrace {

class PassCosts {
 public:
  // Of so many tokens a pass computes no more, at least 1.
  explicit PassCosts(uint32_t max_pass_tokens) : max_pass_tokens_(max_pass_tokens) {}

  // Of a call, with the tokens of each pass. The passes have shares of the time as they were expected to
  // have; before anything is known a pass is taken to cost as much as some of its tokens.
  void Learn(std::span<const uint32_t> passes, double seconds);

  double Seconds(double tokens) const { return curve_.Seconds(tokens); }
  // Of all that is to be read until there is a draft, at least 1 token, over several passes if need be.
  double ReadSeconds(uint32_t missing) const;
  bool is_known() const { return curve_.is_known(); }
  uint32_t max_pass_tokens() const { return max_pass_tokens_; }

 private:
  const uint32_t max_pass_tokens_;
  CostCurve curve_{8192};  // forgotten slowly: to try what a large pass takes is to read for long
};

}  // namespace terrace
