#include <cmath>

#include "kernels/activation/silu_mul.h"

namespace terrace {

void SiluMulRef(const SiluMulArgs& a, ThreadPool&) {
  for (size_t i = 0; i < a.count; ++i) {
    a.out[i] = static_cast<float>(a.gate[i] / (1 + std::exp(-double{a.gate[i]})) * a.up[i]);
  }
}

}  // namespace terrace
