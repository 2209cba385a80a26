#include "router/cluster/address_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/descriptor.h"

namespace terrace {
namespace {

constexpr off_t kMaxBytes = 1 << 20;

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

StatusOr<std::vector<std::string>> ParseLines(std::string_view text) {
  std::vector<std::string> out;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = Trim(text.substr(0, std::min(text.substr(0, end).find('#'), end)));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty()) continue;
    const auto address = ParseWorkerAddress(line);
    if (!address.ok()) return Annotate(address.status(), Concat("line ", number));
    out.push_back(address->ToString());
  }
  if (out.empty()) return InvalidArgument("lists no worker");
  return out;
}

Status SystemError(const char* what) { return Unavailable(what, ": ", std::strerror(errno)); }

}  // namespace

StatusOr<HostPort> ParseWorkerAddress(std::string_view text) {
  ASSIGN_OR_RETURN(HostPort out, ParseHostPort(text));
  if (out.port == 0) return InvalidArgument("\"", text, "\": a worker's port is not 0");
  return out;
}

Status AddressFile::Refresh() {
  auto text = ReadIfChanged();
  if (!text.ok()) {
    seen_.reset();
    error_ = Annotate(text.status(), path_);
  } else if (text->has_value()) {
    auto parsed = ParseLines(**text);
    error_ = Annotate(parsed.status(), path_);
    if (parsed.ok()) addresses_ = *std::move(parsed);
  }
  return error_;
}

StatusOr<std::optional<std::string>> AddressFile::ReadIfChanged() {
  const Descriptor file(open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.is_open()) return SystemError("cannot be opened");
  struct stat now {};
  if (fstat(file.number(), &now) != 0) return SystemError("cannot be looked at");
  if (!S_ISREG(now.st_mode)) return InvalidArgument("is not a file");
  if (now.st_size > kMaxBytes) return InvalidArgument("has ", now.st_size, " bytes, limit ", kMaxBytes);
  const FileStamp stamp = StampOf(now);
  if (seen_ == stamp) return std::optional<std::string>();
  std::string text(static_cast<size_t>(now.st_size), '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t more = read(file.number(), text.data() + size, text.size() - size);
    if (more < 0) return SystemError("cannot be read");
    if (more == 0) break;  // it has become shorter meanwhile
    size += static_cast<size_t>(more);
  }
  text.resize(size);
  seen_ = stamp;
  return std::optional(std::move(text));
}

}  // namespace terrace
