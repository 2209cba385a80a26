#include "worker/formats/file_kind.h"

#include "worker/formats/byte_reader.h"

namespace terrace {

Status RefuseForeignFormat(std::span<const std::byte> file) {
  const std::string_view text = AsText(file);
  // The length before a safetensors header may be any bytes; the header itself tells it apart.
  if (text.size() > 8 && text[8] == '{') return Status();
  const struct {
    size_t offset;
    std::string_view magic, name;
  } kinds[] = {{0, "PK\x03\x04", "a zip archive (PyTorch checkpoints are such)"},
               {0, "\x1f\x8b", "a gzip file"},
               {0, "\x80\x02", "a pickle"},
               {0, "\x80\x03", "a pickle"},
               {0, "\x80\x04", "a pickle"},
               {0, "\x80\x05", "a pickle"},
               {0, "tjgg", "a GGJT file, a format before GGUF"},
               {0, "fmgg", "a GGMF file, a format before GGUF"},
               {0, "lmgg", "a GGML file, a format before GGUF"},
               {257, "ustar", "a tar archive"}};
  for (const auto& kind : kinds) {
    if (text.size() > kind.offset && text.substr(kind.offset).starts_with(kind.magic))
      return Malformed("unsupported_format", "is ", kind.name, " (magic number at byte ", kind.offset,
                       "); supported are GGUF and safetensors");
  }
  return Status();
}

}  // namespace terrace
