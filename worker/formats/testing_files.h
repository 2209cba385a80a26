// Builds small valid model files part by part, so that tests and tools can change one part and write the
// rest.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "worker/formats/gguf_writer.h"

namespace terrace {

struct GgufParts {
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;  // innermost first
    uint32_t type = 0;
    std::string data;
    std::optional<uint64_t> offset;  // instead of the right one
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> tensor_count, key_count;  // instead of the right ones
  uint64_t alignment = 32;                          // of the data; does not write the key
  std::vector<GgufKey> keys;
  std::vector<Tensor> tensors;

  void Set(std::string_view name, GgufField value);  // replaces or appends
  void Remove(std::string_view name);                // a key or a tensor
  Tensor& tensor(std::string_view name);
  std::string Header() const;  // everything before the data's padding
  std::string Bytes() const;
};

struct SafetensorsParts {
  Json header;  // name -> dtype, shape, data_offsets
  std::string data;
  std::optional<std::string> header_text;  // instead of `header`
  std::optional<uint64_t> header_bytes;    // instead of the right length

  void Add(const std::string& name, std::string_view dtype, const std::vector<uint64_t>& shape,
           std::string_view bytes);
  std::string Bytes() const;
};

struct FolderParts {
  Json config, generation_config, tokenizer, tokenizer_config;
  SafetensorsParts weights;
  std::map<std::string, std::string> files;  // more files, or other text for one of the above
  std::set<std::string> absent;              // files that are not written

  void Write(const std::string& directory) const;
};

// One Llama model with a tokenizer and a chat template, twice: hidden size 32, 2 heads of 16 and 1 KV head, 1
// layer, F16 with F32 norms, all weights 1.
GgufParts TinyGguf();
FolderParts TinyFolder();

void WriteFile(const std::string& path, std::string_view bytes);

}  // namespace terrace
