// A file or folder that appears whole or not at all: it is written under a temporary name beside its own and
// renamed at the end. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "base/status.h"

namespace terrace {

// The temporary name. What is there when this is destroyed without a Commit is removed.
class StagedPath {
 public:
  // INVALID_ARGUMENT when something is at `path` already, or at the temporary name; `path` may end with
  // slashes. The temporary name is one beside `path`, or `wanted`, which is on the same file system.
  static StatusOr<StagedPath> Create(const std::string& path, const std::string& wanted = "");
  ~StagedPath();
  StagedPath(StagedPath&& other) noexcept;
  StagedPath& operator=(StagedPath&&) = delete;

  const std::string& temporary() const { return temporary_; }
  // Renames; never over something that came to `path` meanwhile (INVALID_ARGUMENT). Of a folder the files
  // were closed by OutputFile::Close: then all of it is on the disk when this returns OK.
  Status Commit();

 private:
  StagedPath(std::string path, std::string temporary)
      : path_(std::move(path)), temporary_(std::move(temporary)) {}
  const std::string path_;
  std::string temporary_;  // empty: nothing to remove
};

// A new file, written from its start to its end. Errors name the file, the byte and the cause:
// RESOURCE_EXHAUSTED for a full disk, a quota or a limit on file sizes, NOT_FOUND for an absent folder,
// UNAVAILABLE for the rest.
class OutputFile {
 public:
  // Space for `bytes` is taken at once where the file system can do that, so that a full disk shows here.
  static StatusOr<OutputFile> Create(const std::string& path, uint64_t bytes);
  ~OutputFile();
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;

  Status Append(std::span<const std::byte> bytes);
  uint64_t size() const { return size_; }  // bytes appended
  Status Close();                          // when the bytes are on the disk

 private:
  OutputFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  const std::string path_;
  int fd_;  // -1: closed
  uint64_t size_ = 0;
};

// Puts `parts`, one after the other, in place of what is at `path`, perhaps nothing. They are written to
// `temporary` first, on the same file system: whoever reads `path` sees the old bytes or the new ones, whole.
// What is at `temporary` goes. Errors of OutputFile.
Status ReplaceFile(const std::string& path, const std::string& temporary,
                   std::initializer_list<std::span<const std::byte>> parts);

}  // namespace terrace
