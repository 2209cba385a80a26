#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace terrace {
namespace {
constexpr size_t kPieceBytes = 4096;

// Of a file that could not be opened: only these say that none is there.
Status CannotOpen(const std::string& path, int error) {
  const std::string message = Concat(path, ": ", std::strerror(error));
  return error == ENOENT || error == ENOTDIR ? NotFound(message) : Unavailable(message);
}

}  // namespace

StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not block us
  if (fd < 0) return CannotOpen(path, errno);
  struct stat info = {};
  const bool is_regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  const size_t size = is_regular ? static_cast<size_t>(info.st_size) : 0;
  void* data = nullptr;
  if (size > 0) data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int map_error = errno;
  ::close(fd);
  if (!is_regular) return NotFound(path, ": not a regular file");
  if (data == MAP_FAILED)
    return Unavailable(path, ": cannot map ", size, " bytes: ", std::strerror(map_error));
  return std::unique_ptr<MappedFile>(new MappedFile(path, data, size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

StatusOr<std::string> ReadFile(const std::string& path, size_t limit) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not block us
  if (fd < 0) return CannotOpen(path, errno);
  struct stat info = {};
  const bool is_regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  const size_t expected = is_regular ? static_cast<size_t>(info.st_size) : 0;
  std::string bytes;
  ssize_t got = is_regular ? 1 : 0;
  // Not mapped: somebody may be writing it, and what was cut off a mapped file kills who reads on.
  while (got > 0 && bytes.size() <= limit) {
    const size_t size = bytes.size();
    const size_t missing = std::min(expected, limit + 1) - std::min(expected, size);
    bytes.resize(size + std::max(kPieceBytes, missing));
    got = ::read(fd, bytes.data() + size, bytes.size() - size);
    bytes.resize(size + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (got < 0 && errno == EINTR) got = 1;
  }
  const int read_error = errno;
  ::close(fd);
  if (!is_regular) return NotFound(path, ": not a regular file");
  if (got < 0) return Unavailable(path, ": ", std::strerror(read_error));
  if (bytes.size() > limit) {
    return ResourceExhausted(path, ": ", std::max(bytes.size(), expected), " bytes, limit ", limit);
  }
  return bytes;
}

}  // namespace terrace
