#include "kernels/rope/rope_table.h"

#include <cstdint>
#include <numeric>

namespace terrace {

RopeTable MakeRopeTable(size_t positions, const RopeFrequencies& frequencies, ThreadPool& pool) {
  const size_t pairs = frequencies.steps.size();
  RopeTable table = {.cos = std::vector<float>(positions * pairs),
                     .sin = std::vector<float>(positions * pairs)};
  constexpr size_t kGrain = 256;  // positions
  pool.ParallelFor(positions, kGrain, [&](size_t begin, size_t end) {
    std::vector<uint32_t> range(end - begin);
    std::iota(range.begin(), range.end(), static_cast<uint32_t>(begin));
    RopeAngles(range.data(), range.size(), frequencies, table.cos.data() + begin * pairs,
               table.sin.data() + begin * pairs);
  });
  return table;
}

}  // namespace terrace
