#include "tools/quality/logits.h"

#include <algorithm>
#include <cmath>

namespace terrace {

StatusOr<NormalizedLogits> Normalize(std::span<const float> logits, const char* whose) {
  if (!std::ranges::all_of(logits, [](float logit) { return std::isfinite(logit); }))
    return WithReason(Internal("a logit of the ", whose, " is not finite"), "numeric_error");
  const auto top = std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - *top);
  return NormalizedLogits{static_cast<size_t>(top - logits.begin()), *top + std::log(sum)};
}

}  // namespace terrace
