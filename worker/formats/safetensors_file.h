// Safetensors: one file, or shards that an index names. Everything is checked on opening: the header is
// strict JSON, the tensors cover the data without hole or overlap, and the index and the shards agree.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "worker/formats/mapped_weights.h"
#include "worker/formats/model_config.h"

namespace terrace {

// A tensor as a file describes it.
struct SafetensorsTensor {
  std::string name;
  std::string dtype;  // F32, F16, BF16, I8, I32 or I64
  Shape shape;
  std::span<const std::byte> data;  // as many bytes as dtype and shape take
  uint64_t offset = 0;              // of the data in its file
  std::string_view file = {};       // the path
};

// The tensors of one file, by offset; they borrow from `file`, whose path is `path`. DATA_LOSS with reasons
// header_limit, bad_header, bad_name, bad_shape, bad_dtype, bad_offset, count_limit, unsupported_format.
StatusOr<std::vector<SafetensorsTensor>> ParseSafetensors(std::span<const std::byte> file,
                                                          std::string_view path = "");

// `directory`/model.safetensors, else the shards of `directory`/model.safetensors.index.json, as kernels take
// them; null `quantization`: all are floats. Also reasons bad_index and those of MakeKernelTensors; NOT_FOUND
// when neither is there.
StatusOr<std::unique_ptr<MappedWeights>> OpenSafetensors(const std::string& directory,
                                                         const WeightQuantization* quantization = nullptr);

}  // namespace terrace
