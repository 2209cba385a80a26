#include "worker/formats/stored_ranges.h"

#include <algorithm>
#include <map>

#include "worker/formats/byte_reader.h"
#include "worker/formats/gguf_file.h"
#include "worker/formats/safetensors_file.h"

namespace terrace {
namespace {

// A tensor of a file: `offset` of its data, and the rows that these are cut into.
struct StoredBytesOf {
  size_t file = 0;
  uint64_t offset = 0, bytes = 0, rows = 0;
};
// By name, so that the parts of a matrix follow each other.
using StoredByName = std::map<std::string, StoredBytesOf, std::less<>>;

Status Add(const MappedFile& mapped, size_t file, StoredByName& stored) {
  const auto rows_of = [](const Shape& shape) { return shape.rank > 1 ? shape[0] : 1; };
  if (AsText(mapped.bytes()).starts_with("GGUF")) {
    ASSIGN_OR_RETURN(const GgufContents contents, ParseGguf(mapped.bytes()));
    for (const auto& [name, tensor, offset, path] : contents.entries)
      stored[name] = {.file = file, .offset = offset, .bytes = tensor.bytes, .rows = rows_of(tensor.shape)};
    return {};
  }
  ASSIGN_OR_RETURN(const auto tensors, ParseSafetensors(mapped.bytes()));
  for (const SafetensorsTensor& tensor : tensors)
    stored[tensor.name] = {
        .file = file, .offset = tensor.offset, .bytes = tensor.data.size(), .rows = rows_of(tensor.shape)};
  return {};
}

// What is before the data of all tensors; a file without any is all header.
std::vector<FileRange> Headers(MappedFiles files, const StoredByName& stored) {
  std::vector<FileRange> headers = WholeFiles(files);
  for (const auto& [name, tensor] : stored) {
    uint64_t& end = headers[tensor.file].end;
    end = std::min(end, tensor.offset);
  }
  return headers;
}

}  // namespace

StatusOr<std::vector<FileRange>> RangesOf(MappedFiles files, std::span<const TensorRows> parts) {
  StoredByName stored;
  for (size_t i = 0; i < files.size(); ++i)
    RETURN_IF_ERROR(Annotate(Add(*files[i], i, stored), files[i]->path()));
  std::vector<FileRange> ranges = Headers(files, stored);
  for (const TensorRows& part : parts) {
    // "model.layers.0.mlp.up_proj.", behind which are weight, or weight_packed, weight_scale and others.
    const std::string base = part.name.substr(0, part.name.rfind('.') + 1);
    const size_t before = ranges.size();
    for (auto at = stored.lower_bound(base); at != stored.end() && at->first.starts_with(base); ++at) {
      const auto& [file, offset, bytes, rows] = at->second;
      const bool is_cut = rows == part.rows && rows > 1;
      const uint64_t row_bytes = bytes / rows;
      ranges.push_back({.file = file,
                        .begin = is_cut ? offset + part.begin * row_bytes : offset,
                        .end = is_cut ? offset + part.end * row_bytes : offset + bytes});
    }
    CHECK(ranges.size() > before, part.name, " is in none of the files");
  }
  return ranges;
}

}  // namespace terrace
