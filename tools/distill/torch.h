// libtorch's headers, whose CHECK (glog's) is not ours.
#pragma once

#include <cstdint>

#pragma push_macro("CHECK")
#undef CHECK
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#undef CHECK
#pragma pop_macro("CHECK")

namespace terrace {

// For reductions, as at::IntArrayRef(kLastDimension): a list in braces would be gone before it is read.
inline constexpr int64_t kLastDimension[] = {-1};

}  // namespace terrace
