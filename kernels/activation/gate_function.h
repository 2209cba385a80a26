// What a feed-forward layer gates with: out = Gate(gate) * up (Shazeer, "GLU Variants Improve Transformer",
// 2020).
#pragma once

#include <cstdint>

namespace terrace {

enum class GateFunction : uint8_t {
  kSilu,  // x / (1 + exp(-x))
  kGelu,  // x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), which is x * sigmoid of twice that
          // (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016)
};

}  // namespace terrace
