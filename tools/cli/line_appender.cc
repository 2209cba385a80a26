#include "tools/cli/line_appender.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/mapped_file.h"

namespace terrace {
namespace {

Status CannotWrite(const std::string& path, int error) {
  return Unavailable(path, ": cannot be written: ", std::strerror(error));
}

}  // namespace

StatusOr<LineAppender> LineAppender::Open(const std::string& path) {
  LineAppender out(path, Descriptor(open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666)));
  if (!out.file_.is_open()) return CannotWrite(path, errno);
  struct stat info = {};
  if (fstat(out.file_.number(), &info) != 0) return CannotWrite(path, errno);
  if (!S_ISREG(info.st_mode)) return Unavailable(path, ": not a regular file");
  if (flock(out.file_.number(), LOCK_EX | LOCK_NB) != 0) {
    return errno == EWOULDBLOCK ? Unavailable(path, ": another process is at work there")
                                : Unavailable(path, ": cannot lock: ", std::strerror(errno));
  }
  auto text = ReadFile(path);
  if (!text.ok()) return Unavailable(Message(text.status()));  // it is there
  out.text_ = *std::move(text);
  return out;
}

Status LineAppender::Keep(size_t bytes) {
  CHECK(bytes <= text_.size() && (bytes > 0 || text_.empty()), path_, ": ", bytes, " of ", text_.size());
  if (bytes == text_.size()) return {};
  text_.resize(bytes);
  return ftruncate(file_.number(), static_cast<off_t>(bytes)) == 0 ? Status() : CannotWrite(path_, errno);
}

Status LineAppender::Append(std::string line) {
  line += '\n';
  for (std::string_view rest = line; !rest.empty() && error_ == 0;) {
    const ssize_t written = write(file_.number(), rest.data(), rest.size());
    if (written >= 0) rest.remove_prefix(static_cast<size_t>(written));
    if (written < 0 && errno != EINTR) error_ = errno;
  }
  return error_ == 0 ? Status() : CannotWrite(path_, error_);
}

}  // namespace terrace
