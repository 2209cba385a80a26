#include "tools/optimize/hidden_states.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace terrace {

StatusOr<HiddenStates> HiddenStates::Create(const std::string& folder, size_t tokens, size_t width) {
  const std::string path = folder + "/hidden-states";  // a killed process may have left one of that name
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  HiddenStates states(folder, tokens, width, fd);
  if (fd < 0) return states.Failed(errno, "cannot make the file");
  ::unlink(path.c_str());
  const auto bytes = static_cast<off_t>(tokens * width * sizeof(float));
  if (bytes > 0 && ::fallocate(fd, 0, 0, bytes) != 0) {
    if (errno != EOPNOTSUPP && errno != ENOSYS) return states.Failed(errno, "cannot take the space");
    if (::ftruncate(fd, bytes) != 0) return states.Failed(errno, "cannot take the space");
  }
  return states;
}

HiddenStates::~HiddenStates() {
  if (fd_ >= 0) ::close(fd_);
}

HiddenStates& HiddenStates::operator=(HiddenStates&& other) noexcept {
  std::swap(folder_, other.folder_);
  std::swap(tokens_, other.tokens_);
  std::swap(width_, other.width_);
  std::swap(fd_, other.fd_);
  return *this;
}

Status HiddenStates::Failed(int error, const char* doing) const {
  const std::string message =
      Concat(folder_, ": ", doing, " for what ", tokens_, " tokens of calibration text are between layers, ",
             tokens_ * width_ * sizeof(float), " bytes: ", std::strerror(error));
  const bool is_full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return is_full ? ResourceExhausted(message) : Unavailable(message);
}

Status HiddenStates::Read(size_t first, std::span<float> rows) const {
  CHECK(first * width_ + rows.size() <= tokens_ * width_, "rows from ", first, " on of ", tokens_);
  auto left = std::as_writable_bytes(rows);
  auto at = static_cast<off_t>(first * width_ * sizeof(float));
  while (!left.empty()) {
    const ssize_t got = ::pread(fd_, left.data(), left.size(), at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return Failed(got < 0 ? errno : EIO, "cannot read the file");
    left = left.subspan(static_cast<size_t>(got));
    at += got;
  }
  return Status();
}

Status HiddenStates::Write(size_t first, std::span<const float> rows) {
  CHECK(first * width_ + rows.size() <= tokens_ * width_, "rows from ", first, " on of ", tokens_);
  auto left = std::as_bytes(rows);
  auto at = static_cast<off_t>(first * width_ * sizeof(float));
  while (!left.empty()) {
    const ssize_t put = ::pwrite(fd_, left.data(), left.size(), at);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Failed(errno, "cannot write the file");
    left = left.subspan(static_cast<size_t>(put));
    at += put;
  }
  return Status();
}

Status HiddenStates::EachPiece(
    const std::function<Status(size_t first, std::span<const float> rows)>& use) const {
  std::vector<float> rows;
  for (size_t first = 0; first < tokens_; first += kPieceTokens) {
    rows.resize(std::min(kPieceTokens, tokens_ - first) * width_);
    RETURN_IF_ERROR(Read(first, rows));
    RETURN_IF_ERROR(use(first, rows));
  }
  return Status();
}

}  // namespace terrace
