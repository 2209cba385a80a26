// Writes what gguf_file.h reads: typed values, and the head of a version 3 file up to its tensors' data.
// Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "worker/formats/byte_writer.h"
#include "worker/formats/gguf_file.h"

namespace terrace {

// A value as the file has it.
struct GgufField {
  GgufType type = GgufType::kUint32;
  std::string bytes;
};
GgufField GgufU32(uint32_t value);
GgufField GgufI32(int32_t value);
GgufField GgufF32(float value);
GgufField GgufBool(bool value);
GgufField GgufString(std::string_view value);
GgufField GgufStrings(const std::vector<std::string>& values);
GgufField GgufInts(const std::vector<int32_t>& values);
GgufField GgufFloats(const std::vector<float>& values);

struct GgufKey {
  std::string name;
  GgufField value;
};

struct GgufTensorInfo {
  std::string name;
  std::vector<uint64_t> dims;  // innermost first
  uint32_t type = 0;           // ggml's number
  uint64_t offset = 0;         // from the start of the data
};

inline constexpr uint64_t kGgufAlignment = 32;  // of the data, and of each tensor in it

uint32_t GgufTensorType(DType dtype);
void AppendGgufKey(std::string& out, const GgufKey& key);
void AppendGgufTensorInfo(std::string& out, const GgufTensorInfo& info);

// All that stands before the data, padded to the alignment.
std::string GgufHead(const std::vector<GgufKey>& keys, const std::vector<GgufTensorInfo>& tensors);

}  // namespace terrace
