// Element types of weights, and their block arithmetic. A later format is an entry here, a decoder in
// quant/weight_codes.h, its strips (FormatOf and PutScales of gemm/weight_strips.*), the struct that reads
// them (gemm/gemm_cpu.h), and its levels and blocks (worker/formats/weight_levels.cc).
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>

namespace terrace {

// Blocks of F32 to Q6_K are those of GGML's files. INT4 and INT8 are what folders of compressed-tensors
// become when they are opened (worker/formats/compressed_tensors.h).
enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,      // f16 scale, 32 x int8
  kQ4_0,      // f16 scale, 32 x 4 bits, biased by 8
  kQ5_0,      // f16 scale, 32 x 5 bits, biased by 16
  kQ4_K,      // f16 scale and minimum, 8 x (6 bits scale, 6 bits minimum), 256 x 4 bits
  kQ6_K,      // 256 x 6 bits, biased by 32, 16 x int8 scale, f16 scale
  kInt4G32,   // f16 scale, u8 zero point, u8 unused, 32 x 4 bits: scale * (code - zero point)
  kInt4G128,  // the same, 128 x 4 bits
  kInt8,      // int8; one f32 scale for each row lies apart
};

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  size_t block_elements;  // elements per block along the innermost dimension
  size_t block_bytes;
  int gguf_type;  // ggml's number; -1 where GGUF has no such type
};

inline constexpr DTypeInfo kDTypes[] = {
    {DType::kF32, "F32", 1, 4, 0},
    {DType::kF16, "F16", 1, 2, 1},
    {DType::kBF16, "BF16", 1, 2, 30},
    {DType::kQ8_0, "Q8_0", 32, 34, 8},
    {DType::kQ4_0, "Q4_0", 32, 18, 2},
    {DType::kQ5_0, "Q5_0", 32, 22, 6},
    {DType::kQ4_K, "Q4_K", 256, 144, 12},
    {DType::kQ6_K, "Q6_K", 256, 210, 14},
    {DType::kInt4G32, "INT4_G32", 32, 20, -1},
    {DType::kInt4G128, "INT4_G128", 128, 68, -1},
    {DType::kInt8, "INT8", 1, 1, -1},
};

constexpr const DTypeInfo& Info(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

static_assert([] {
  for (size_t i = 0; i < std::size(kDTypes); ++i) {
    if (static_cast<size_t>(kDTypes[i].dtype) != i) return false;
  }
  return true;
}());

}  // namespace terrace
