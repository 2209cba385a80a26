#include "tools/bench/arrivals.h"

#include <cmath>

#include "base/rng.h"
#include "tools/bench/streams.h"

namespace terrace {

double Arrivals::Next() {
  const uint64_t index = count_++;
  if (kind_ == ArrivalKind::kConstant) return static_cast<double>(index) / rate_;
  const double uniform = RandomUniform(seed_, index, kArrivalStream);
  return last_ -= std::log1p(-uniform) / rate_;
}

}  // namespace terrace
