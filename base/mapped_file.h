// A read-only memory map of a regular file. Owns the mapping; the bytes live as long as the object.
// Thread-safe after Open. A file that another process truncates while it is mapped raises SIGBUS, so models
// are replaced by renaming a new file into place, never by writing into one that is served.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"

namespace terrace {

class MappedFile {
 public:
  // NOT_FOUND when there is no such file, or what is there is none (a folder, a pipe); UNAVAILABLE when it
  // cannot be read: too many open files, no permission, an error of the disk.
  static StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, void* data, size_t size) : path_(std::move(path)), data_(data), size_(size) {}
  const std::string path_;
  void* const data_;  // null for an empty file
  const size_t size_;
};

// The whole file as a string. The same errors, and RESOURCE_EXHAUSTED when larger than `limit` bytes.
StatusOr<std::string> ReadFile(const std::string& path, size_t limit = size_t{256} << 20);

}  // namespace terrace
