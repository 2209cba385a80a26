#include "kernels/rope/rope_table.h"

#include <cstdint>
#include <numeric>

#include "kernels/rope/rope_kv.h"

namespace terrace {

RopeTable MakeRopeTable(size_t positions, double base, size_t head_dim, ThreadPool& pool) {
  const size_t pairs = head_dim / 2;
  RopeTable table = {.cos = std::vector<float>(positions * pairs),
                     .sin = std::vector<float>(positions * pairs)};
  constexpr size_t kGrain = 256;  // positions: a power of `base` a pair is then little of the work
  pool.ParallelFor(positions, kGrain, [&](size_t begin, size_t end) {
    std::vector<uint32_t> range(end - begin);
    std::iota(range.begin(), range.end(), static_cast<uint32_t>(begin));
    RopeAngles(range.data(), range.size(), base, head_dim, table.cos.data() + begin * pairs,
               table.sin.data() + begin * pairs);
  });
  return table;
}

}  // namespace terrace
