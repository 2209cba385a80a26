// A large block of memory, on huge pages if wanted and where the system gives them: streaming through it then
// costs few address translations. Spread over the NUMA nodes that this process runs on. Owns the memory.
// Pages come, as zeros, when they are first touched.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace terrace {

class LargeBuffer {
 public:
  static constexpr size_t kAlignment = size_t{2} << 20;

  LargeBuffer() = default;
  // kSmall: of memory that is touched here and there, where each touch would cost 2 MiB.
  enum class Pages { kHuge, kSmall };
  // RESOURCE_EXHAUSTED names `what` and the size.
  static StatusOr<LargeBuffer> Allocate(size_t bytes, std::string_view what, Pages pages = Pages::kHuge);
  ~LargeBuffer();
  LargeBuffer(LargeBuffer&& other) noexcept { *this = std::move(other); }
  LargeBuffer& operator=(LargeBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  std::byte* data() const { return data_; }  // aligned to kAlignment
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace terrace
