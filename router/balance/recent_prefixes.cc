#include "router/balance/recent_prefixes.h"

#include <bit>
#include <utility>

namespace terrace {

void RecentPrefixes::Add(std::span<const uint64_t> keys, uint32_t replica, MonoTime now) {
  std::lock_guard lock(mutex_);
  Age(now);
  for (size_t blocks = 1; blocks <= keys.size(); blocks *= 2) maps_[0][keys[blocks - 1]] = replica;
}

std::optional<RecentPrefixes::Found> RecentPrefixes::Find(std::span<const uint64_t> keys, MonoTime now) {
  std::lock_guard lock(mutex_);
  Age(now);
  for (size_t blocks = std::bit_floor(keys.size()); blocks > 0; blocks /= 2) {
    for (const Map& map : maps_) {
      const auto found = map.find(keys[blocks - 1]);
      if (found != map.end()) return Found{found->second, static_cast<uint32_t>(blocks)};
    }
  }
  return {};
}

void RecentPrefixes::Age(MonoTime now) {
  const double age = Seconds(now - turned_);
  if (age < kSeconds && maps_[0].size() < kMaxKeys) return;
  if (age >= 2 * kSeconds) maps_[0].clear();
  std::swap(maps_[0], maps_[1]);
  maps_[0].clear();
  turned_ = now;
}

}  // namespace terrace
