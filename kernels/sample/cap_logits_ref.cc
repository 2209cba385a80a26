#include <cmath>
#include <limits>

#include "kernels/sample/cap_logits.h"

namespace terrace {

void CapLogitsRef(const CapLogitsArgs& a, ThreadPool&) {
  for (size_t i = 0; i < a.count; ++i) {
    float& logit = a.logits[i];
    logit = std::isfinite(logit) ? static_cast<float>(a.cap * std::tanh(double{logit} / a.cap))
                                 : std::numeric_limits<float>::quiet_NaN();
  }
}

}  // namespace terrace
