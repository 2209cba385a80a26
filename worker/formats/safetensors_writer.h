// Writes what safetensors_file.h reads: the head of a file, up to its tensors' data. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"

namespace terrace {

// What the header says of one tensor, whose data is [begin, begin + bytes) of the data.
Json SafetensorsEntry(std::string_view dtype, const std::vector<uint64_t>& shape, uint64_t begin,
                      uint64_t bytes);

// The header's length and text, which is `header` and then spaces: the data begins at a multiple of 8.
std::string SafetensorsHead(const Json& header);

}  // namespace terrace
