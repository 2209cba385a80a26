// Element types of weights, and their block arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace terrace {

enum class DType : uint8_t { kF32, kF16, kBF16, kQ8_0 };

struct DTypeInfo {
  std::string_view name;
  size_t block_elements;  // elements per block along the innermost dimension
  size_t block_bytes;
};

constexpr DTypeInfo Info(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return {"F32", 1, 4};
    case DType::kF16:
      return {"F16", 1, 2};
    case DType::kBF16:
      return {"BF16", 1, 2};
    case DType::kQ8_0:
      return {"Q8_0", 32, 34};  // GGML: one f16 scale, then 32 int8
  }
  return {"?", 1, 0};
}

}  // namespace terrace
