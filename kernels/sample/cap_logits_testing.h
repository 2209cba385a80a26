// What cap_logits on a GPU may differ from the reference by: for its tests on the emulator and on a GPU.
#pragma once

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {

// In roundings, 2^-24, of the cap: the exponent 2 x / ln 2 is rounded three times, the quotient, the constant
// and the product, each of which moves tanh by at most x / cosh(x)^2 < 0.45; 2 ulp of exp2 are 4 roundings of
// which half arrive, and 2 ulp of the reciprocal, twice, are 4 of at most 2; the sum in front of it is one of
// at most 2, and those of the difference, the product and the reference are one each.
inline constexpr double kCapLogitsError = 3 * 0.45 + 2 + 8 + 2 + 3;

inline void ExpectCappedLogits(const std::vector<float>& raw, float cap, const float* got) {
  for (size_t i = 0; i < raw.size(); ++i) {
    if (!std::isfinite(raw[i])) {
      ASSERT_TRUE(std::isnan(got[i])) << raw[i];
      continue;
    }
    ASSERT_NEAR(got[i], cap * std::tanh(double{raw[i]} / cap), kCapLogitsError * 0x1p-24 * cap) << raw[i];
  }
}

}  // namespace terrace
