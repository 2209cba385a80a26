#include "worker/formats/gguf_writer.h"

namespace terrace {
namespace {

std::string PackedString(std::string_view text) { return Packed(uint64_t{text.size()}) + std::string(text); }

GgufField ArrayOf(GgufType type, uint64_t count, const std::string& elements) {
  return {GgufType::kArray, Packed(static_cast<uint32_t>(type)) + Packed(count) + elements};
}

}  // namespace

GgufField GgufU32(uint32_t value) { return {GgufType::kUint32, Packed(value)}; }
GgufField GgufI32(int32_t value) { return {GgufType::kInt32, Packed(value)}; }
GgufField GgufF32(float value) { return {GgufType::kFloat32, Packed(value)}; }
GgufField GgufBool(bool value) { return {GgufType::kBool, Packed(uint8_t{value})}; }
GgufField GgufString(std::string_view value) { return {GgufType::kString, PackedString(value)}; }

GgufField GgufStrings(const std::vector<std::string>& values) {
  std::string elements;
  for (const std::string& value : values) elements += PackedString(value);
  return ArrayOf(GgufType::kString, values.size(), elements);
}

GgufField GgufInts(const std::vector<int32_t>& values) {
  std::string elements;
  for (const int32_t value : values) elements += Packed(value);
  return ArrayOf(GgufType::kInt32, values.size(), elements);
}

GgufField GgufFloats(const std::vector<float>& values) {
  std::string elements;
  for (const float value : values) elements += Packed(value);
  return ArrayOf(GgufType::kFloat32, values.size(), elements);
}

uint32_t GgufTensorType(DType dtype) {
  CHECK(Info(dtype).gguf_type >= 0, Info(dtype).name);
  return static_cast<uint32_t>(Info(dtype).gguf_type);
}

void AppendGgufKey(std::string& out, const GgufKey& key) {
  out += PackedString(key.name);
  out += Packed(static_cast<uint32_t>(key.value.type));
  out += key.value.bytes;
}

void AppendGgufTensorInfo(std::string& out, const GgufTensorInfo& info) {
  out += PackedString(info.name) + Packed(static_cast<uint32_t>(info.dims.size()));
  for (const uint64_t dim : info.dims) out += Packed(dim);
  out += Packed(info.type) + Packed(info.offset);
}

std::string GgufHead(const std::vector<GgufKey>& keys, const std::vector<GgufTensorInfo>& tensors) {
  std::string out =
      "GGUF" + Packed(uint32_t{3}) + Packed(uint64_t{tensors.size()}) + Packed(uint64_t{keys.size()});
  for (const GgufKey& key : keys) AppendGgufKey(out, key);
  for (const GgufTensorInfo& tensor : tensors) AppendGgufTensorInfo(out, tensor);
  out.resize(RoundUp(out.size(), kGgufAlignment));
  return out;
}

}  // namespace terrace
