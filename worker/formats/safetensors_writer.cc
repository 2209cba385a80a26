#include "worker/formats/safetensors_writer.h"

#include "base/json.h"
#include "worker/formats/byte_writer.h"

namespace terrace {

Json SafetensorsEntry(std::string_view dtype, const std::vector<uint64_t>& shape, uint64_t begin,
                      uint64_t bytes) {
  return {{"dtype", std::string(dtype)}, {"shape", shape}, {"data_offsets", {begin, begin + bytes}}};
}

std::string SafetensorsHead(const Json& header) {
  std::string text = header.dump();
  text.resize(RoundUp(text.size(), 8), ' ');
  return Packed(uint64_t{text.size()}) + text;
}

}  // namespace terrace
