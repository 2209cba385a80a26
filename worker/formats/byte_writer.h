// The opposite of byte_reader.h: values as model files have them.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

namespace terrace {

// The bytes of a number, little-endian.
template <typename T>
requires std::is_arithmetic_v<T> std::string Packed(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

constexpr uint64_t RoundUp(uint64_t offset, uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

}  // namespace terrace
