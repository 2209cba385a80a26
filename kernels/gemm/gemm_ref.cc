#include "kernels/gemm/gemm.h"
#include "kernels/scalar_convert.h"

namespace terrace {

void GemmRef(const GemmArgs& a, ThreadPool&) {
  for (size_t token = 0; token < a.tokens; ++token) {
    for (size_t output = 0; output < a.outputs(); ++output) {
      float& out = a.out[token * a.outputs() + output];
      double sum = a.add_to_out ? out : 0;
      for (size_t k = 0; k < a.inputs(); ++k) {
        sum += double{a.x[token * a.inputs() + k]} * WeightAt(a.weights, output, k);
      }
      out = static_cast<float>(sum);
    }
  }
}

}  // namespace terrace
