#include "tools/cli/line_appender.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

namespace terrace {

StatusOr<LineAppender> LineAppender::Open(const std::string& path, size_t bytes) {
  std::error_code error;
  const bool exists = std::filesystem::exists(path, error);
  // What its caller could not read would be cut off whole.
  if (exists && access(path.c_str(), R_OK) != 0) return Unavailable(path, ": ", std::strerror(errno));
  if (exists && std::filesystem::file_size(path, error) > bytes)
    std::filesystem::resize_file(path, bytes, error);
  if (error) return Unavailable(path, ": ", error.message());
  LineAppender out(path);
  errno = 0;
  out.file_.open(path, std::ios::binary | std::ios::app);
  if (!out.file_) return out.CannotWrite();
  return out;
}

Status LineAppender::Append(const std::string& line) {
  errno = 0;
  file_ << line << '\n' << std::flush;
  return file_ ? Status() : CannotWrite();
}

// Once `file_` has failed; errno was 0 before.
Status LineAppender::CannotWrite() const {
  return Unavailable(path_, ": cannot be written: ", std::strerror(errno != 0 ? errno : EIO));
}

}  // namespace terrace
