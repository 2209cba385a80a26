#include "tools/cli/new_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <span>
#include <system_error>

#include "worker/formats/staged_path.h"

namespace terrace {
namespace {
Status CannotWrite(const std::string& path, int error) {
  return Unavailable(path, ": cannot be written: ", std::strerror(error));
}

// A new, empty file beside `path`, of a name that nothing had.
StatusOr<std::string> MakeBeside(const std::string& path) {
  std::string name = path + ".new-XXXXXX";
  const int fd = mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) return CannotWrite(path, errno);
  close(fd);
  return name;
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
  if (error == 0 && fsync(fd) != 0) error = errno;
  if (close(fd) != 0 && error == 0) error = errno;
  if (error == 0) return {};
  unlink(path.c_str());  // half a file would be in the way of the next try
  return CannotWrite(path, error);
}

Status ReplaceFile(const std::string& path, std::string_view text) {
  ASSIGN_OR_RETURN(const std::string beside, MakeBeside(path));
  const Status replaced = ReplaceFile(path, beside, {std::as_bytes(std::span(text))});
  if (replaced.ok()) return replaced;
  std::string message = Message(replaced);
  if (message.starts_with(beside)) message.replace(0, beside.size(), path);
  return Unavailable(message);
}

Status CheckCanReplace(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return Unavailable(path, ": is a folder");
  ASSIGN_OR_RETURN(const std::string beside, MakeBeside(path));
  std::filesystem::remove(beside, ignored);
  return {};
}

Status CheckIsNoInput(const char* option, const std::string& path,
                      const std::vector<std::pair<const char*, std::string>>& inputs) {
  for (const auto& [name, input] : inputs) {
    std::error_code ignored;  // where one is not there yet, names are compared
    const bool is_same = std::filesystem::equivalent(path, input, ignored) || path == input;
    if (is_same && !input.empty())
      return InvalidArgument(option, " ", path, ": is the file of ", name, ", which would be overwritten");
  }
  return {};
}

}  // namespace terrace
