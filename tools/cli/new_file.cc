#include "tools/cli/new_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <system_error>

#include "worker/formats/staged_path.h"

namespace terrace {
namespace {
std::string Beside(const std::string& path) { return path + ".new"; }
}  // namespace

Status WriteNewFile(const std::string& path, std::string_view text, bool is_secret) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, is_secret ? 0600 : 0644);
  if (fd < 0) return Unavailable(path, ": ", std::strerror(errno));
  const bool is_written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  if (close(fd) == 0 && is_written) return {};
  return Unavailable(path, ": cannot be written");
}

Status ReplaceFile(const std::string& path, std::string_view text) {
  return ReplaceFile(path, Beside(path), {std::as_bytes(std::span(text))});
}

Status CheckCanReplace(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return Unavailable(path, ": is a folder");
  const std::string beside = Beside(path);
  if (!std::ofstream(beside, std::ios::binary | std::ios::trunc))
    return Unavailable(beside, ": cannot be written");
  std::filesystem::remove(beside, ignored);
  return {};
}

}  // namespace terrace
