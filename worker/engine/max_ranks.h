// How many processes a model is split over at most: for those that read configurations without opening
// models.
#pragma once

#include <cstdint>

namespace terrace {

inline constexpr uint32_t kMaxRanks = 64;        // of a group
inline constexpr uint32_t kMaxDeviceRanks = 16;  // of one on GPUs, whose sums may be trees over all of them

}  // namespace terrace
