// How many processes a model is split over at most: for those that read configurations without opening
// models.
#pragma once

#include <cstdint>

namespace terrace {

inline constexpr uint32_t kMaxRanks = 64;  // of a group

}  // namespace terrace
