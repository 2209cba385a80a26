// Safetensors: one file, or shards that an index names. Everything is checked on opening: the header is
// strict JSON, the tensors cover the data without hole or overlap, and the index and the shards agree.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "worker/formats/mapped_weights.h"

namespace terrace {

// The tensors of one file, by offset; they borrow from `file`. DATA_LOSS with reasons header_limit,
// bad_header, bad_name, bad_shape, bad_dtype, bad_offset, count_limit, unsupported_format.
StatusOr<std::vector<WeightSource::Entry>> ParseSafetensors(std::span<const std::byte> file);

// `directory`/model.safetensors, else the shards of `directory`/model.safetensors.index.json. Also reason
// bad_index; NOT_FOUND when neither is there.
StatusOr<std::unique_ptr<MappedWeights>> OpenSafetensors(const std::string& directory);

}  // namespace terrace
