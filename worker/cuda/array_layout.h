// How arrays lie in one buffer of a device.
#pragma once

#include <cstdint>
#include <utility>

namespace terrace {

inline constexpr uint64_t Aligned(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

// Lays arrays out one behind the other, at multiples of 256 bytes.
class ArrayLayout {
 public:
  // Where the array begins.
  template <typename T>
  uint64_t Add(uint64_t count) {
    return std::exchange(bytes_, Aligned(bytes_ + count * sizeof(T)));
  }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t bytes_ = 0;
};

}  // namespace terrace
