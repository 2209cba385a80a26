#include "kernels/moe/expert_groups.h"

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace terrace {

void GroupPairs(std::span<const uint32_t> chosen, size_t experts, ExpertGroups& groups) {
  groups.begin.assign(experts + 1, 0);
  groups.pairs.resize(chosen.size());
  groups.places.resize(chosen.size());
  for (const uint32_t expert : chosen) {
    CHECK(expert < experts, "expert ", expert, " of ", experts);
    ++groups.begin[expert];
  }
  uint32_t place = 0;
  for (uint32_t& begin : groups.begin) place += std::exchange(begin, place);
  for (size_t pair = 0; pair < chosen.size(); ++pair) {  // begin[e] moves to where e + 1 begins
    const uint32_t to = groups.begin[chosen[pair]]++;
    groups.pairs[to] = static_cast<uint32_t>(pair);
    groups.places[pair] = to;
  }
  std::shift_right(groups.begin.begin(), groups.begin.end(), 1);
  groups.begin[0] = 0;
}

}  // namespace terrace
