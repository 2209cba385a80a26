#include "tools/cli/line_reader.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace terrace {
namespace {
constexpr int kPollMilliseconds = 50;  // how late a Ctrl-C may be noticed
}

std::optional<std::string> LineReader::Next(ShutdownSignal& shutdown) {
  while (true) {
    const size_t end = buffer_.find('\n');
    if (end != std::string::npos || (is_at_end_ && !buffer_.empty())) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end == std::string::npos ? end : end + 1);
      return line;
    }
    if (is_at_end_) return std::nullopt;
    pollfd poll_fd = {.fd = fd_, .events = POLLIN, .revents = 0};
    const int ready = poll(&poll_fd, 1, kPollMilliseconds);
    if (shutdown.WaitFor(0) != 0) return std::nullopt;
    if (ready <= 0) continue;
    std::array<char, 4096> chunk;
    const ssize_t count = read(fd_, chunk.data(), chunk.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) is_at_end_ = true;
    if (count > 0) buffer_.append(chunk.data(), count);
  }
}

}  // namespace terrace
