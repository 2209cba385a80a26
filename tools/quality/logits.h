// Logits as a distribution. Pure.
#pragma once

#include <cstddef>
#include <span>

#include "base/status.h"

namespace terrace {

struct NormalizedLogits {
  size_t likeliest = 0;  // the first of equals
  double log_sum = 0;    // ln of the sum of exp(logit): of an element, ln p = logit - log_sum
};

// INTERNAL, reason numeric_error, when one is not finite; `whose` is for the message.
StatusOr<NormalizedLogits> Normalize(std::span<const float> logits, const char* whose);

}  // namespace terrace
