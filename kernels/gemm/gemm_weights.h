// A matrix of weights as gemm takes it: made once, at load, by OpTable::pack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "kernels/weight_matrix.h"

namespace terrace {

// What gemm multiplies weights by.
//   kAuto  what is fastest on the format: 16-bit weights take activations rounded to bf16 (F16 weights are
//          rounded to bf16 too), quantized weights take activations rounded to int8, F32 weights f32
//   kF32   weights become f32 (exactly, but that kInt8 rounds code times scale) and activations stay f32:
//   four
//          times the memory of Q8_0, seven of Q4_0, and slow
enum class ComputeType : uint8_t { kAuto, kF32 };

// "auto" or "f32"; INVALID_ARGUMENT otherwise.
StatusOr<ComputeType> ParseComputeType(std::string_view name);

// Borrowed. `two_of_four` says that strips hold two of each four elements, and their places. `packed` says
// the bytes are strips of `dtype` (kernels/gemm/weight_strips.h), else rows as a file holds them; a backend
// takes what its own pack made.
struct GemmWeights {
  DType dtype = DType::kF32;
  bool packed = false;
  bool two_of_four = false;
  const std::byte* data = nullptr;
  size_t rows = 0, columns = 0;
  size_t bytes = 0;                   // of the strips; 0: not packed
  const float* row_scales = nullptr;  // [rows], of kInt8 that is not packed
  size_t row_pitch = 0;               // as of WeightMatrix, of what is not packed

  WeightMatrix AsRows() const {
    return {.dtype = dtype,
            .data = data,
            .rows = rows,
            .columns = columns,
            .row_scales = row_scales,
            .row_pitch = row_pitch};
  }
};

}  // namespace terrace
