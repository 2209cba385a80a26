// How many tokens a prompt or an answer has: always the same number, uniform, or log-normal. An immutable
// value; draws are pure functions of their arguments.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace terrace {

class LengthDistribution {
 public:
  static constexpr uint32_t kMaxLength = 1u << 20;

  static LengthDistribution Fixed(uint32_t length);
  // "128", "uniform:64-512" (both ends included) or "lognormal:MEDIAN,SIGMA" (sigma of the natural
  // logarithm). INVALID_ARGUMENT for anything else, or lengths outside [1, kMaxLength].
  static StatusOr<LengthDistribution> Parse(std::string_view text);

  uint32_t Draw(uint64_t seed, uint64_t counter, uint64_t stream) const;  // in [min(), max()]

  // Of what may be drawn. A log-normal length has no largest value of its own: it ends at kMaxLength.
  uint32_t min() const { return min_; }
  uint32_t max() const { return max_; }
  bool is_log_normal() const { return sigma_ > 0; }
  const std::string& text() const { return text_; }  // as Parse reads it

 private:
  LengthDistribution(std::string text, uint32_t min, uint32_t max, double median, double sigma)
      : text_(std::move(text)), min_(min), max_(max), median_(median), sigma_(sigma) {}

  std::string text_;
  uint32_t min_, max_;
  double median_, sigma_;  // of a log-normal one; 0 otherwise
};

}  // namespace terrace
