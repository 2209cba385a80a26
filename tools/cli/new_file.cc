#include "tools/cli/new_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <span>
#include <system_error>

#include "worker/formats/staged_path.h"

namespace terrace {
namespace {
std::string Beside(const std::string& path) { return path + ".new"; }

Status CannotWrite(const std::string& path, int error) {
  return Unavailable(path, ": cannot be written: ", std::strerror(error));
}
}  // namespace

Status WriteNewFile(const std::string& path, std::string_view text, bool is_secret) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, is_secret ? 0600 : 0644);
  if (fd < 0) return CannotWrite(path, errno);
  int error = 0;
  while (!text.empty() && error == 0) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written >= 0) text.remove_prefix(static_cast<size_t>(written));
    if (written < 0 && errno != EINTR) error = errno;
  }
  if (close(fd) != 0 && error == 0) error = errno;
  return error == 0 ? Status() : CannotWrite(path, error);
}

Status ReplaceFile(const std::string& path, std::string_view text) {
  const Status replaced = ReplaceFile(path, Beside(path), {std::as_bytes(std::span(text))});
  if (replaced.ok()) return replaced;
  std::string message = Message(replaced);
  if (message.starts_with(Beside(path))) message.replace(0, Beside(path).size(), path);
  return Unavailable(message);
}

Status CheckCanReplace(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return Unavailable(path, ": is a folder");
  const std::string beside = Beside(path);
  const int fd = open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return CannotWrite(path, errno);
  close(fd);
  std::filesystem::remove(beside, ignored);
  return {};
}

}  // namespace terrace
