#include "worker/formats/staged_path.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

namespace terrace {
namespace {

template <typename... Doing>
Status SystemError(int error, const std::string& path, const Doing&... doing) {
  const std::string message = Concat(path, ": ", doing..., ": ", std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return ResourceExhausted(message);
    case ENOENT:
    case ENOTDIR:
      return NotFound(message);
    case EEXIST:
    case ENOTEMPTY:
      return InvalidArgument(message);
    default:
      return Unavailable(message);
  }
}

Status ExistsAlready(const std::string& path) {
  return InvalidArgument(path, ": is there already, and nothing is overwritten");
}

bool IsThere(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(std::filesystem::symlink_status(path, ignored));
}

// Puts a file, or the names in a folder, on the disk.
Status Sync(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const int error = fd >= 0 && ::fsync(fd) == 0 ? 0 : errno;
  if (fd >= 0) ::close(fd);
  if (error == 0 || error == EINVAL) return Status();  // file systems that cannot sync a folder
  return SystemError(error, path, "cannot finish writing");
}

}  // namespace

StatusOr<StagedPath> StagedPath::Create(const std::string& path, const std::string& wanted) {
  std::string plain = path;
  while (plain.size() > 1 && plain.ends_with('/')) plain.pop_back();
  if (plain.empty()) return InvalidArgument("the path of the output is empty");
  if (IsThere(plain)) return ExistsAlready(plain);
  const std::string temporary = wanted.empty() ? Concat(plain, ".partial-", ::getpid()) : wanted;
  if (IsThere(temporary)) return ExistsAlready(temporary);
  return StagedPath(plain, temporary);
}

StagedPath::StagedPath(StagedPath&& other) noexcept
    : path_(other.path_), temporary_(std::exchange(other.temporary_, "")) {}

StagedPath::~StagedPath() {
  std::error_code ignored;
  if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
}

Status StagedPath::Commit() {
  RETURN_IF_ERROR(Sync(temporary_));
  int result = ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE);
  if (result != 0 && (errno == EINVAL || errno == ENOSYS)) {  // file systems without that flag
    if (IsThere(path_)) return ExistsAlready(path_);
    result = ::rename(temporary_.c_str(), path_.c_str());
  }
  if (result != 0) {
    return errno == EEXIST ? ExistsAlready(path_) : SystemError(errno, path_, "cannot rename to this name");
  }
  temporary_.clear();
  const std::string parent = std::filesystem::path(path_).parent_path();
  return Sync(parent.empty() ? "." : parent);
}

StatusOr<OutputFile> OutputFile::Create(const std::string& path, uint64_t bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return SystemError(errno, path, "cannot create");
  OutputFile file(path, fd);
  if (bytes > 0 && ::fallocate(fd, 0, 0, static_cast<off_t>(bytes)) != 0 && errno != EOPNOTSUPP &&
      errno != ENOSYS)
    return SystemError(errno, path, "cannot take ", bytes, " bytes");
  return file;
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(other.path_), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

Status OutputFile::Append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0)
      return SystemError(errno, path_, "cannot write ", bytes.size(), " bytes at byte ", size_);
    bytes = bytes.subspan(static_cast<size_t>(written));
    size_ += static_cast<uint64_t>(written);
  }
  return Status();
}

Status OutputFile::Close() {
  int error = ::fsync(fd_) == 0 ? 0 : errno;
  if (::close(std::exchange(fd_, -1)) != 0 && error == 0) error = errno;
  return error == 0 ? Status() : SystemError(error, path_, "cannot finish writing");
}

Status ReplaceFile(const std::string& path, const std::string& temporary,
                   std::initializer_list<std::span<const std::byte>> parts) {
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);  // of a process that was killed
  uint64_t bytes = 0;
  for (const auto part : parts) bytes += part.size();
  auto file = OutputFile::Create(temporary, bytes);
  Status status = file.status();
  for (const auto part : parts) {
    if (status.ok()) status = file->Append(part);
  }
  if (status.ok()) status = file->Close();
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0)
    status = SystemError(errno, path, "cannot rename to this name");
  if (!status.ok()) std::filesystem::remove(temporary, ignored);
  return status;
}

}  // namespace terrace
