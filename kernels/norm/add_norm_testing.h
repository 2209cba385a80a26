// What add_norm on a GPU may differ from the reference by: for its tests on the emulator and on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/norm/rms_norm_testing.h"

namespace terrace {

// One row: `hidden` before and `got` behind. The norm's own error, and the sum's rounding.
inline void ExpectAddNormRow(const float* x, const std::vector<float>& weight, double epsilon,
                             const float* hidden, const float* got) {
  const std::vector<double> norm = RmsNormRef(x, weight, epsilon);
  for (size_t i = 0; i < norm.size(); ++i) {
    const double want = hidden[i] + norm[i];
    ASSERT_NEAR(got[i], want, std::abs(norm[i]) * kRmsNormError + std::abs(want) * 0x1.01p-24)
        << "column " << i;
  }
}

}  // namespace terrace
