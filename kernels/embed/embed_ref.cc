#include "kernels/embed/embed.h"
#include "kernels/quant/weight_values.h"

namespace terrace {

void EmbedRef(const EmbedArgs& a, ThreadPool&) {
  for (size_t i = 0; i < a.count; ++i) {
    const auto row = static_cast<size_t>(a.tokens[i]);
    for (size_t k = 0; k < a.table.columns; ++k) {
      const double scaled = double{a.scale} * WeightAt(a.table, row, k);
      a.out[i * a.table.columns + k] = static_cast<float>(scaled);
    }
  }
}

}  // namespace terrace
