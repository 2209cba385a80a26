#include "tools/cli/new_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace terrace {

Status WriteNewFile(const std::string& path, std::string_view text, bool is_secret) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, is_secret ? 0600 : 0644);
  if (fd < 0) return Unavailable(path, ": ", std::strerror(errno));
  const bool is_written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  if (close(fd) == 0 && is_written) return {};
  return Unavailable(path, ": cannot be written");
}

Status ReplaceFile(const std::string& path, std::string_view text) {
  const std::string beside = path + ".new";
  std::ofstream stream(beside, std::ios::binary | std::ios::trunc);
  stream << text;
  stream.close();
  if (!stream) return Unavailable(beside, ": cannot be written");
  std::error_code error;
  std::filesystem::rename(beside, path, error);
  return error ? Unavailable(path, ": ", error.message()) : Status();
}

}  // namespace terrace
