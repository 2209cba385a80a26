// Where in its files a part of a model lies. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "worker/formats/digest_list.h"

namespace terrace {

// Rows [begin, end) of the `rows` that the tensor `name` of a model has.
struct TensorRows {
  std::string name;
  uint64_t rows = 0;
  uint64_t begin = 0, end = 0;
};

// The bytes that `parts` are made of, and those of all headers, of weight files that were opened
// (worker/formats/ model_files.h). A matrix that is stored in parts (compressed_tensors.h) has these rows of
// each of them that has as many, and all of the others. Errors of ParseGguf and ParseSafetensors.
StatusOr<std::vector<FileRange>> RangesOf(MappedFiles files, std::span<const TensorRows> parts);

}  // namespace terrace
