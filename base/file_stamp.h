// Whether a file has been written or replaced since one looked. Values only.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

namespace terrace {

struct FileStamp {
  uint64_t device = 0, inode = 0, bytes = 0;
  int64_t changed_seconds = 0, changed_nanoseconds = 0;
  int64_t status_seconds = 0, status_nanoseconds = 0;  // nobody can set these back

  friend bool operator==(const FileStamp&, const FileStamp&) = default;
};

inline FileStamp StampOf(const struct stat& found) {
  return {.device = found.st_dev,
          .inode = found.st_ino,
          .bytes = static_cast<uint64_t>(found.st_size),
          .changed_seconds = found.st_mtim.tv_sec,
          .changed_nanoseconds = found.st_mtim.tv_nsec,
          .status_seconds = found.st_ctim.tv_sec,
          .status_nanoseconds = found.st_ctim.tv_nsec};
}

// All zero when there is no such file.
inline FileStamp StampOf(const std::string& file) {
  struct stat found = {};
  return stat(file.c_str(), &found) == 0 ? StampOf(found) : FileStamp();
}

}  // namespace terrace
