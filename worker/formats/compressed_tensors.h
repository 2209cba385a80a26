// Quantized matrices in safetensors files, as the compressed-tensors library lays them out (vLLM, Hugging
// Face Transformers and llm-compressor read and write it). In the place of P.weight, [rows, columns], a file
// has
//
//   format "pack-quantized", 4 bits in groups of columns; value = scale * (code - zero point)
//     P.weight_packed      I32 [rows, columns / 8]       eight codes, the first in the lowest bits
//     P.weight_zero_point  I32 [ceil(rows / 8), groups]  eight rows; not when symmetric: then it is 8
//     P.weight_scale       F16 or BF16 [rows, groups]
//     P.weight_shape       I32 or I64 [2]                rows, columns
//   format "int-quantized", 8 bits, activations are rounded to 8 bits as they come; value = scale * code
//     P.weight             I8 [rows, columns]
//     P.weight_scale       F32, F16 or BF16 [rows, 1]
//   format "float-quantized", FP8 E4M3 (kernels/scalar_convert.h); value = scale * code
//     P.weight             F8_E4M3 [rows, columns]
//     P.weight_scale       F32, F16 or BF16 [rows, 1], or [1] for all rows
//
// and config.json says which in quantization_config, or in format "mixed-precision" that both are there: one
// config group of each, and the tensors of a matrix say which it is. Matrices that are stored as floats (the
// embedding, the output, those of layers that were left) are among them. Groups are runs of columns: an
// activation order that needs weight_g_idx is refused. Kernels take the blocks of kernels/dtype.h, which are
// made of 4 bits row by row while weights are loaded (RowMaker); a group of 64 becomes two blocks of 32 with
// one scale. Scales of BF16 become F16, exactly from 2^-17 on.
//
// FP8 becomes BF16 likewise, of twice the memory, as CPUs have no products of it. `engine.compute: fp8` makes
// FP8 of that again on a device, with the codes and scales of the file where RoundToFp8 (weight_encoding.h)
// made them; without it activations are not rounded to 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "worker/formats/model_config.h"
#include "worker/formats/safetensors_file.h"
#include "worker/formats/weight_source.h"

namespace terrace {

// From config.json's quantization_config, and back. INVALID_ARGUMENT names the key and what is supported.
StatusOr<WeightQuantization> ParseQuantizationConfig(const Json& json);
Json QuantizationConfigJson(const WeightQuantization& quantization);

// The dtype that kernels take such a matrix in; of the 4-bit ones where there are both.
DType KernelDType(const WeightQuantization& quantization);
// Whether a layer's matrices of `dtype` are stored as above, rather than as floats or not at all.
bool IsStoredInParts(const WeightQuantization& quantization, DType dtype);

// The module that a tensor belongs to, as config.json names it: "model.layers.0.mlp.gate" of its weight.
std::string_view ModuleOf(std::string_view tensor);

// What people call weights of `dtype`: INT4 after the `group` of columns that share a scale (INT4_G64), which
// the kernels' dtype does not tell. 0: not known, or not of INT4.
std::string FormatName(DType dtype, uint32_t group);
// Of a model's matrices.
std::string FormatName(DType dtype, const ModelConfig& config);

// The tensors that store the matrix `name` of `shape` in parts, whose columns are whole groups, in the order
// of their data.
struct StoredTensor {
  std::string name;
  std::string_view dtype;
  std::vector<uint64_t> shape;
  uint64_t bytes = 0;
};
std::vector<StoredTensor> StoredTensors(const WeightQuantization& quantization, const std::string& name,
                                        DType dtype, const Shape& shape);

// Their data, one after the other. `blocks` is the matrix in `dtype`; of INT8 the codes, then the f32 scales
// of the rows; of FP8 rows as RoundToFp8 makes them, of which codes and scales are found again. The blocks of
// a group have the same scale and zero point.
std::vector<std::byte> StoredBytes(const WeightQuantization& quantization, DType dtype, const Shape& shape,
                                   std::span<const std::byte> blocks);

// What kernels take, of all tensors of a model's files.
struct KernelTensors {
  std::vector<WeightSource::Entry> entries;          // borrow the files, and
  std::vector<std::unique_ptr<std::byte[]>> memory;  // this, and
  std::vector<std::unique_ptr<RowMaker>> makers;     // these
};
// Null `quantization`: all are floats. DATA_LOSS with file, tensor and byte and the reasons bad_dtype,
// bad_shape, missing_tensor, nonfinite (a scale), unsupported_tensor (weight_g_idx). A value of FP8 that is
// no number, or too large, is an error of its maker.
StatusOr<KernelTensors> MakeKernelTensors(const std::vector<SafetensorsTensor>& tensors,
                                          const WeightQuantization* quantization);

}  // namespace terrace
